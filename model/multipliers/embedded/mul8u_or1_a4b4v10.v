// Partial products joined by OR: mul8u_or1_a4b4v10
module mul8u_or1_a4b4v10(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = A[4] & B[6] | A[5] & B[5] | A[6] & B[4];
  wire n1 = A[4] & B[7] | A[5] & B[6] | A[6] & B[5] | A[7] & B[4];
  wire n2 = A[5] & B[7] | A[6] & B[6] | A[7] & B[5];
  wire n3 = A[6] & B[7] | A[7] & B[6];
  wire n4 = A[7] & B[7];
  assign O[0] = 1'b0;
  assign O[1] = 1'b0;
  assign O[2] = 1'b0;
  assign O[3] = 1'b0;
  assign O[4] = 1'b0;
  assign O[5] = 1'b0;
  assign O[6] = 1'b0;
  assign O[7] = 1'b0;
  assign O[8] = 1'b0;
  assign O[9] = 1'b0;
  assign O[10] = n0;
  assign O[11] = n1;
  assign O[12] = n2;
  assign O[13] = n3;
  assign O[14] = n4;
  assign O[15] = 1'b0;
endmodule
