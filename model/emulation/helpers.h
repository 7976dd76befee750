// Threads that stay, and help whoever has work. One that the system does not wake in time is not waited for. A layer of
// one image may take less than ten times what the system takes to wake a thread: who waits looks about for a while, and
// only then sleeps.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

// Returns when `there` is, or some tens of microseconds later
template <typename Condition>
void look_about(const Condition &there) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(40);
    while (!there() && std::chrono::steady_clock::now() < end)
        for (int i = 0; i < 8; i++)
#if defined(__x86_64__)
            __builtin_ia32_pause();
#else
            std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

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
        lock.unlock();
        look_about([this] { return active_ == 0; });
        lock.lock();
        ended_.wait(lock, [this] { return active_ == 0; });
        work_ = nullptr;
    }

  private:
    void help() {
        std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
        for (;;) {
            look_about([this] { return wanted_ > 0; });
            lock.lock();
            wake_.wait(lock, [this] { return wanted_ > 0; });
            wanted_--;
            active_++;
            const std::function<void()> &work = *work_;
            lock.unlock();
            work();
            lock.lock();
            if (--active_ == 0) ended_.notify_all();
            lock.unlock();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, ended_;
    const std::function<void()> *work_ = nullptr;
    int32_t count_ = 0;
    std::atomic<int32_t> wanted_{0}, active_{0};  // changed with the mutex only
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

// work(first, last) on batches of 0 ... count - 1, each thread taking the next that is free
template <typename Work>
void parallel(int32_t threads, int64_t count, int64_t batch, const Work &work) {
    std::atomic<int64_t> next{0};
    auto share = [&] {
        for (int64_t first; (first = next.fetch_add(batch)) < count;) work(first, std::min(count, first + batch));
    };
    const int64_t others = std::min<int64_t>(threads, (count + batch - 1) / batch) - 1;
    if (others > 0)
        helpers().run(int32_t(others), share);
    else
        share();
}

}  // namespace
