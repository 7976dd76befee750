// Evolved by ReD-CaNe: redcane library evolve --mae 5.2 --wce 42 --bias 0.26 --start mul8u_exact --evaluations 10000000 --seed 1 --component mul8u_e22
// Limits: mae <= 5.2 %, wce <= 42 %, bias <= 0.26 %
// All operand pairs alike: MAE 4.96 %, worst case 25.91 %, std 6.362 %, bias -0.153 %, wrong 99.99 %
module mul8u_e22(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = A[6] & B[5];
  wire n1 = A[7] & B[6];
  wire n2 = B[7] & A[7];
  wire n3 = B[7] & A[6];
  wire n4 = n1 | n2;
  wire n5 = n2 | n0;
  wire n6 = ~n2;
  wire n7 = B[6] & ~n6;
  wire n8 = ~n7;
  wire n9 = n3 ^ n7;
  wire n10 = ~(n5 & n3);
  wire n11 = n5 ^ n9;
  wire n12 = ~(n8 & n10);
  wire n13 = ~(n12 & A[7]);
  wire n14 = n12 ^ n4;
  wire n15 = ~n13;
  assign O[0] = A[7];
  assign O[1] = n6;
  assign O[2] = A[2];
  assign O[3] = B[7];
  assign O[4] = n9;
  assign O[5] = A[0];
  assign O[6] = 1'b0;
  assign O[7] = B[6];
  assign O[8] = A[4];
  assign O[9] = A[1];
  assign O[10] = n10;
  assign O[11] = A[5];
  assign O[12] = n3;
  assign O[13] = n11;
  assign O[14] = n14;
  assign O[15] = n15;
endmodule
