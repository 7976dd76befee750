// Evolved by ReD-CaNe: redcane library evolve --mae 10 --wce 80 --bias 0.5 --start mul8u_exact --evaluations 10000000 --seed 1 --component mul8u_e24
// Limits: mae <= 10 %, wce <= 80 %, bias <= 0.5 %
// All operand pairs alike: MAE 8.659 %, worst case 32.26 %, std 11.3 %, bias 0.08583 %, wrong 99.88 %
module mul8u_e24(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = A[7] & B[7];
  assign O[0] = A[7];
  assign O[1] = 1'b0;
  assign O[2] = 1'b0;
  assign O[3] = B[7];
  assign O[4] = n0;
  assign O[5] = A[2];
  assign O[6] = 1'b0;
  assign O[7] = n0;
  assign O[8] = A[3];
  assign O[9] = A[1];
  assign O[10] = A[3];
  assign O[11] = B[6];
  assign O[12] = B[7];
  assign O[13] = A[6];
  assign O[14] = 1'b0;
  assign O[15] = n0;
endmodule
