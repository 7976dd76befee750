// A memory behind AXI4, for test benches: fast enough for whole networks, since nothing of it is Python.
//
// A burst is answered `latency` cycles after it was taken, so bursts overlap. Each channel holds back in `hold` of 256
// cycles, at random (the simulator's seed). Bursts of the two IDs are answered beat by beat in any order. Beyond the
// last word the answer is DECERR. `load` reads memory.hex in the working directory ($readmemh, words of BITS bits),
// `store` writes the words `first` to `last` there. `violations` counts breaches of the protocol by the master.
module axi_memory #(
    parameter BITS = 512, ADDRESS = 32, WORDS = 65536, BURSTS = 32
) (
    input clk, input rst,
    input [15:0] latency, input [7:0] hold, input load, input store, input [31:0] first, input [31:0] last,
    output reg [31:0] violations,
    input arvalid, output arready, input arid, input [ADDRESS-1:0] araddr, input [7:0] arlen, input [2:0] arsize,
    input [1:0] arburst,
    output reg rvalid, input rready, output reg rid, output reg [BITS-1:0] rdata, output reg [1:0] rresp,
    output reg rlast,
    input awvalid, output awready, input awid, input [ADDRESS-1:0] awaddr, input [7:0] awlen, input [2:0] awsize,
    input [1:0] awburst,
    input wvalid, output wready, input [BITS-1:0] wdata, input [BITS/8-1:0] wstrb, input wlast,
    output reg bvalid, input bready, output reg bid, output reg [1:0] bresp
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
    reg [WORD-1:0] read_word [0:2*BURSTS-1];
    reg [7:0] read_left [0:2*BURSTS-1];
    reg [31:0] read_due [0:2*BURSTS-1];
    reg [SLOT:0] read_head [0:1], read_tail [0:1];
    reg [WORD-1:0] next_word;
    reg [SLOT:0] slot;
    reg pick;
    wire [1:0] full = {read_tail[1] - read_head[1] == BURSTS[SLOT:0], read_tail[0] - read_head[0] == BURSTS[SLOT:0]};
    wire [1:0] ready = {
        read_tail[1] != read_head[1] && now >= read_due[{1'b1, read_head[1][SLOT-1:0]}],
        read_tail[0] != read_head[0] && now >= read_due[{1'b0, read_head[0][SLOT-1:0]}]};
    assign arready = open[0] && full == 0;
    always @(posedge clk) begin
        if (rready) rvalid <= 0;
        if ((!rvalid || rready) && open[1] && ready != 0) begin
            pick = ready == 2'b11 ? ($urandom & 1) == 1 : ready[1];
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
            read_head[0] <= 0; read_head[1] <= 0; read_tail[0] <= 0; read_tail[1] <= 0;
        end
    end

    // Writes: one burst at a time.
    reg writing, answering, write_id;
    reg [WORD-1:0] write_word;
    reg [7:0] write_left;
    reg [31:0] write_due;
    integer i;
    assign awready = open[2] && !writing && !answering;
    assign wready = open[3] && writing;
    always @(posedge clk) begin
        if (bready) bvalid <= 0;
        if (awvalid && awready) begin
            writing <= 1;
            write_id <= awid;
            write_word <= awaddr[ADDRESS-1:SIZE];
            write_left <= awlen;
            bresp <= 0;
        end
        if (wvalid && wready) begin
            for (i = 0; i < BITS / 8; i = i + 1)
                if (wstrb[i] && write_word < WORDS) words[write_word[$clog2(WORDS)-1:0]][8*i+:8] <= wdata[8*i+:8];
            if (write_word >= WORDS) bresp <= 3;
            write_word <= write_word + 1;
            write_left <= write_left - 1;
            if (write_left == 0) begin
                writing <= 0;
                answering <= 1;
                write_due <= now + {16'd0, latency};
            end
        end
        if (answering && !bvalid && open[4] && now >= write_due) begin
            bvalid <= 1;
            bid <= write_id;
            answering <= 0;
        end
        if (rst) begin
            bvalid <= 0; writing <= 0; answering <= 0;
        end
    end

    // The master's side of the protocol.
    reg ar_held, aw_held, w_held;
    reg [ADDRESS+13:0] ar_before, aw_before;
    reg [BITS+BITS/8:0] w_before;
    wire [ADDRESS+13:0] ar_now = {arid, arsize, arburst, arlen, araddr}, aw_now = {awid, awsize, awburst, awlen, awaddr};
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
