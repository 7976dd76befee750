// Threads that stay, and help whoever has work. One that the system does not wake in time is not waited for.

#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

class Helpers {
  public:
    // Calls `work` here and in up to `most` helpers at once, and returns when all that began have ended.
    void run(int32_t most, const std::function<void()> &work) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (work_) {  // another caller's is under way: this one's is done alone
            lock.unlock();
            work();
            return;
        }
        try {
            for (; count_ < most; count_++) std::thread([this] { help(); }).detach();
        } catch (const std::system_error &) {  // no more threads to be had: those that run do it all
        }
        work_ = &work;
        wanted_ = most;
        lock.unlock();
        wake_.notify_all();
        work();
        lock.lock();
        wanted_ = 0;
        ended_.wait(lock, [this] { return active_ == 0; });
        work_ = nullptr;
    }

  private:
    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            wanted_--;
            active_++;
            const std::function<void()> &work = *work_;
            lock.unlock();
            work();
            lock.lock();
            if (--active_ == 0) ended_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, ended_;
    const std::function<void()> *work_ = nullptr;
    int32_t count_ = 0, wanted_ = 0, active_ = 0;
};

Helpers *all_helpers;  // never destroyed: the threads outlive main; a fork has none of them, and begins anew

Helpers &helpers() {
    static const int registered = [] {
        all_helpers = new Helpers;
        return pthread_atfork(nullptr, nullptr, [] { all_helpers = new Helpers; });
    }();
    (void)registered;
    return *all_helpers;
}

}  // namespace
