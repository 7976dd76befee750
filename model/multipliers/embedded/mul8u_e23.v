// Evolved by ReD-CaNe: redcane library evolve --mae 7.2 --wce 58 --bias 0.36 --start mul8u_exact --evaluations 10000000 --seed 1 --component mul8u_e23
// Limits: mae <= 7.2 %, wce <= 58 %, bias <= 0.36 %
// All operand pairs alike: MAE 6.432 %, worst case 27.94 %, std 8.203 %, bias 0.1415 %, wrong 99.88 %
module mul8u_e23(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = A[7] & B[6];
  wire n1 = A[7] & B[7];
  wire n2 = ~(B[6] & n1);
  wire n3 = n0 ^ n1;
  wire n4 = ~n2;
  assign O[0] = A[7];
  assign O[1] = n1;
  assign O[2] = 1'b0;
  assign O[3] = B[7];
  assign O[4] = A[2];
  assign O[5] = A[0];
  assign O[6] = 1'b0;
  assign O[7] = B[6];
  assign O[8] = A[4];
  assign O[9] = A[1];
  assign O[10] = A[3];
  assign O[11] = B[6];
  assign O[12] = B[7];
  assign O[13] = A[6];
  assign O[14] = n3;
  assign O[15] = n4;
endmodule
