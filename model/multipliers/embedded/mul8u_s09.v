// Evolved by ReD-CaNe: redcane library evolve --mae 10 --wce 80 --weighted-mae 0.5 --weighted-bias 0.05 --half-normal 48 --start mul8u_exact --evaluations 3000000 --seed 1 --component mul8u_s09
// Limits: mae <= 10 %, wce <= 80 %, weighted_mae <= 0.5 %, weighted_bias <= 0.05 %
// All operand pairs alike: MAE 9.831 %, worst case 51 %, std 12.89 %, bias -7.63 %, wrong 99.95 %
// Operand pairs as weighted: MAE 0.4999 %, worst case 39.2 %, std 1.085 %, bias -0.04324 %, wrong 99.7 %
module mul8u_s09(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = B[6] & A[4];
  wire n1 = B[5] | B[7];
  wire n2 = ~(A[6] & B[3]);
  wire n3 = B[4] & A[5];
  wire n4 = A[6] & B[4];
  wire n5 = ~(B[6] & A[3]);
  wire n6 = B[6] & A[5];
  wire n7 = ~(A[5] & n1);
  wire n8 = B[6] & A[6];
  wire n9 = ~n8;
  wire n10 = A[6] & n1;
  wire n11 = A[7] & B[6];
  wire n12 = B[7] & A[6];
  wire n13 = ~(n1 & A[4]);
  wire n14 = ~n7;
  wire n15 = n13 | ~B[4];
  wire n16 = ~n5;
  wire n17 = n0 | n14;
  wire n18 = ~n2;
  wire n19 = ~n15;
  wire n20 = n4 | n19;
  wire n21 = ~n13;
  wire n22 = n18 | n3;
  wire n23 = n22 | n21;
  wire n24 = n16 | n23;
  wire n25 = n20 & n17;
  wire n26 = n17 ^ n20;
  wire n27 = n10 | n6;
  wire n28 = ~(n25 & n27);
  wire n29 = n25 | n27;
  wire n30 = ~(n9 & n28);
  wire n31 = n30 | B[7];
  assign O[0] = n1;
  assign O[1] = n10;
  assign O[2] = n4;
  assign O[3] = n27;
  assign O[4] = n16;
  assign O[5] = A[2];
  assign O[6] = n15;
  assign O[7] = B[3];
  assign O[8] = 1'b1;
  assign O[9] = n24;
  assign O[10] = n26;
  assign O[11] = n29;
  assign O[12] = n31;
  assign O[13] = n12;
  assign O[14] = n11;
  assign O[15] = 1'b0;
endmodule
