// A memory behind AXI4, for test benches: fast enough for whole networks, since nothing of it is Python.
//
// A burst is answered `latency` cycles after it was taken, so bursts overlap. Each channel holds back in `hold` of 256
// cycles, at random (the simulator's seed). Bursts of different IDs are answered beat by beat in any order. Beyond the
// last word the answer is DECERR. `load` reads memory.hex in the working directory ($readmemh, words of BITS bits),
// `store` writes the words `first` to `last` there. `violations` counts breaches of the protocol by the master.
module axi_memory #(
    parameter BITS = 512, ADDRESS = 32, WORDS = 65536, BURSTS = 32
) (
    input clk, input rst,
    input [15:0] latency, input [7:0] hold, input load, input store, input [31:0] first, input [31:0] last,
    output reg [31:0] violations,
    input arvalid, output arready, input [1:0] arid, input [ADDRESS-1:0] araddr, input [7:0] arlen, input [2:0] arsize,
    input [1:0] arburst,
    output reg rvalid, input rready, output reg [1:0] rid, output reg [BITS-1:0] rdata, output reg [1:0] rresp,
    output reg rlast,
    input awvalid, output awready, input [1:0] awid, input [ADDRESS-1:0] awaddr, input [7:0] awlen, input [2:0] awsize,
    input [1:0] awburst,
    input wvalid, output wready, input [BITS-1:0] wdata, input [BITS/8-1:0] wstrb, input wlast,
    output reg bvalid, input bready, output reg [1:0] bid, output reg [1:0] bresp
);
    localparam SIZE = $clog2(BITS / 8), WORD = ADDRESS - SIZE, SLOT = $clog2(BURSTS);
    reg [BITS-1:0] words [0:WORDS-1];
    reg [31:0] now;
    reg settled = 0;  // before the first reset, inputs have random values
    always @(posedge clk) begin
        now <= rst ? 0 : now + 1;
        settled <= settled || rst;
        if (load && settled && !rst) $readmemh("memory.hex", words);
        if (store && settled && !rst) $writememh("memory.hex", words, first, last);
    end

    // Which channels are open in the next cycle: ar, r (a new beat), aw, w, b (a new response).
    reg [4:0] open;
    integer c;
    always @(posedge clk) for (c = 0; c < 5; c = c + 1) open[c] <= ($urandom & 255) >= {24'd0, hold};

    // Reads: a queue of bursts for each ID.
    reg [WORD-1:0] read_word [0:4*BURSTS-1];
    reg [7:0] read_left [0:4*BURSTS-1];
    reg [31:0] read_due [0:4*BURSTS-1];
    reg [SLOT:0] read_head [0:3], read_tail [0:3];
    reg [WORD-1:0] next_word;
    reg [SLOT+1:0] slot;
    reg [1:0] pick;
    wire [3:0] full, ready;
    genvar id;
    generate for (id = 0; id < 4; id = id + 1) begin : queue
        assign full[id] = read_tail[id] - read_head[id] == BURSTS[SLOT:0];
        assign ready[id] = read_tail[id] != read_head[id] && now >= read_due[{id[1:0], read_head[id][SLOT-1:0]}];
    end endgenerate
    assign arready = open[0] && full == 0;
    always @(posedge clk) begin
        if (rready) rvalid <= 0;
        if ((!rvalid || rready) && open[1] && ready != 0) begin
            pick = 2'($urandom);
            while (!ready[pick]) pick = pick + 1;
            slot = {pick, read_head[pick][SLOT-1:0]};
            next_word = read_word[slot];
            rvalid <= 1;
            rid <= pick;
            rdata <= next_word < WORDS ? words[next_word[$clog2(WORDS)-1:0]] : {BITS{1'b1}};
            rresp <= next_word < WORDS ? 2'd0 : 2'd3;
            rlast <= read_left[slot] == 0;
            read_word[slot] <= next_word + 1;
            read_left[slot] <= read_left[slot] - 1;
            if (read_left[slot] == 0) read_head[pick] <= read_head[pick] + 1;
        end
        if (arvalid && arready) begin
            slot = {arid, read_tail[arid][SLOT-1:0]};
            read_word[slot] <= araddr[ADDRESS-1:SIZE];
            read_left[slot] <= arlen;
            read_due[slot] <= now + {16'd0, latency};
            read_tail[arid] <= read_tail[arid] + 1;
        end
        if (rst) begin
            rvalid <= 0;
            for (c = 0; c < 4; c = c + 1) begin
                read_head[c] <= 0; read_tail[c] <= 0;
            end
        end
    end

    // Writes: the data of one burst at a time, and a queue of those that are to be answered.
    reg writing;
    reg [1:0] write_id, write_resp;
    reg [WORD-1:0] write_word;
    reg [7:0] write_left;
    reg [3:0] answer [0:BURSTS-1];
    reg [31:0] answer_due [0:BURSTS-1];
    reg [SLOT:0] answer_head, answer_tail;
    integer i;
    assign awready = open[2] && !writing && answer_tail - answer_head != BURSTS[SLOT:0];
    assign wready = open[3] && writing;
    always @(posedge clk) begin
        if (bready) bvalid <= 0;
        if (awvalid && awready) begin
            writing <= 1;
            write_id <= awid;
            write_word <= awaddr[ADDRESS-1:SIZE];
            write_left <= awlen;
            write_resp <= 0;
        end
        if (wvalid && wready) begin
            for (i = 0; i < BITS / 8; i = i + 1)
                if (wstrb[i] && write_word < WORDS) words[write_word[$clog2(WORDS)-1:0]][8*i+:8] <= wdata[8*i+:8];
            if (write_word >= WORDS) write_resp <= 3;
            write_word <= write_word + 1;
            write_left <= write_left - 1;
            if (write_left == 0) begin
                writing <= 0;
                answer[answer_tail[SLOT-1:0]] <= {write_id, write_word >= WORDS ? 2'd3 : write_resp};
                answer_due[answer_tail[SLOT-1:0]] <= now + {16'd0, latency};
                answer_tail <= answer_tail + 1;
            end
        end
        if ((!bvalid || bready) && open[4] && answer_tail != answer_head
            && now >= answer_due[answer_head[SLOT-1:0]]) begin
            bvalid <= 1;
            {bid, bresp} <= answer[answer_head[SLOT-1:0]];
            answer_head <= answer_head + 1;
        end
        if (rst) begin
            bvalid <= 0; writing <= 0; answer_head <= 0; answer_tail <= 0;
        end
    end

    // The master's side of the protocol.
    reg ar_held, aw_held, w_held;
    reg [ADDRESS+14:0] ar_before, aw_before;
    reg [BITS+BITS/8:0] w_before;
    wire [ADDRESS+14:0] ar_now = {arid, arsize, arburst, arlen, araddr}, aw_now = {awid, awsize, awburst, awlen, awaddr};
    wire [BITS+BITS/8:0] w_now = {wlast, wstrb, wdata};
    function bad_burst(input [11:0] place, input [7:0] len, input [2:0] size, input [1:0] kind);
        bad_burst = size != SIZE[2:0] || kind != 1 || (place & 12'(BITS / 8 - 1)) != 0
            || 32'(place) + (32'(len) + 1) * (BITS / 8) > 4096;
    endfunction
    always @(posedge clk) begin
        {ar_held, aw_held, w_held} <= {arvalid && !arready, awvalid && !awready, wvalid && !wready};
        {ar_before, aw_before, w_before} <= {ar_now, aw_now, w_now};
        if (ar_held && (!arvalid || ar_now != ar_before) || aw_held && (!awvalid || aw_now != aw_before)
            || w_held && (!wvalid || w_now != w_before)
            || arvalid && bad_burst(araddr[11:0], arlen, arsize, arburst)
            || awvalid && bad_burst(awaddr[11:0], awlen, awsize, awburst)
            || wvalid && wready && wlast != (write_left == 0)) violations <= violations + 1;
        if (rst) begin
            violations <= 0;
            {ar_held, aw_held, w_held} <= 0;
        end
    end
endmodule
