// What `sim.bench_system` simulates: the accelerator in a system, and the memory it works with.
module system_bench #(
    parameter BITS = 512, ADDRESS = 32, WORDS = 65536
) (
    input clk, input rst, output irq, output over,
    input [15:0] latency, input [7:0] hold, input load, input store, input [31:0] first, input [31:0] last,
    output [31:0] violations,
    input s_axi_awvalid, output s_axi_awready, input [7:0] s_axi_awaddr,
    input s_axi_wvalid, output s_axi_wready, input [31:0] s_axi_wdata, input [3:0] s_axi_wstrb,
    output s_axi_bvalid, input s_axi_bready, output [1:0] s_axi_bresp,
    input s_axi_arvalid, output s_axi_arready, input [7:0] s_axi_araddr,
    output s_axi_rvalid, input s_axi_rready, output [31:0] s_axi_rdata, output [1:0] s_axi_rresp
);
    wire arvalid, arready, rvalid, rready, rlast, awvalid, awready, wvalid, wready, wlast, bvalid, bready;
    wire [1:0] arid, rid, awid, bid;
    wire [ADDRESS-1:0] araddr, awaddr;
    wire [7:0] arlen, awlen;
    wire [2:0] arsize, awsize, arprot, awprot;
    wire [1:0] arburst, awburst, rresp, bresp;
    wire [3:0] arcache, awcache;
    wire [BITS-1:0] rdata, wdata;
    wire [BITS/8-1:0] wstrb;

    redcane system (
        .clk, .rst, .irq,
        .s_axi_awvalid, .s_axi_awready, .s_axi_awaddr, .s_axi_wvalid, .s_axi_wready, .s_axi_wdata, .s_axi_wstrb,
        .s_axi_bvalid, .s_axi_bready, .s_axi_bresp, .s_axi_arvalid, .s_axi_arready, .s_axi_araddr,
        .s_axi_rvalid, .s_axi_rready, .s_axi_rdata, .s_axi_rresp,
        .m_axi_arvalid(arvalid), .m_axi_arready(arready), .m_axi_arid(arid), .m_axi_araddr(araddr),
        .m_axi_arlen(arlen), .m_axi_arsize(arsize), .m_axi_arburst(arburst), .m_axi_arcache(arcache),
        .m_axi_arprot(arprot), .m_axi_rvalid(rvalid), .m_axi_rready(rready), .m_axi_rid(rid), .m_axi_rdata(rdata),
        .m_axi_rresp(rresp), .m_axi_rlast(rlast),
        .m_axi_awvalid(awvalid), .m_axi_awready(awready), .m_axi_awid(awid), .m_axi_awaddr(awaddr),
        .m_axi_awlen(awlen), .m_axi_awsize(awsize), .m_axi_awburst(awburst), .m_axi_awcache(awcache),
        .m_axi_awprot(awprot), .m_axi_wvalid(wvalid), .m_axi_wready(wready), .m_axi_wdata(wdata),
        .m_axi_wstrb(wstrb), .m_axi_wlast(wlast), .m_axi_bvalid(bvalid), .m_axi_bready(bready), .m_axi_bid(bid),
        .m_axi_bresp(bresp)
    );
`ifdef WAVES
    waves waves (.clk, .rst, .over);  // see sim/waves.py
`else
    assign over = 0;
`endif
    axi_memory #(.BITS(BITS), .ADDRESS(ADDRESS), .WORDS(WORDS)) memory (.*);
endmodule
