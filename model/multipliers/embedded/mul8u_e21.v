// Evolved by ReD-CaNe: redcane library evolve --mae 3.7 --wce 30 --bias 0.18 --start mul8u_exact --evaluations 10000000 --seed 1 --component mul8u_e21
// Limits: mae <= 3.7 %, wce <= 30 %, bias <= 0.18 %
// All operand pairs alike: MAE 3.596 %, worst case 16.75 %, std 4.478 %, bias -0.03395 %, wrong 99.98 %
module mul8u_e21(input [7:0] A, input [7:0] B, output [15:0] O);
  wire n0 = ~(A[6] & B[6]);
  wire n1 = ~n0;
  wire n2 = B[7] & A[5];
  wire n3 = A[7] & B[5];
  wire n4 = A[7] & B[6];
  wire n5 = B[7] & A[6];
  wire n6 = n2 & n4;
  wire n7 = ~n6;
  wire n8 = A[7] & B[7];
  wire n9 = n4 ^ n2;
  wire n10 = ~(n5 & n9);
  wire n11 = n5 ^ n9;
  wire n12 = ~(n3 & n11);
  wire n13 = n6 ^ n8;
  wire n14 = n3 ^ n11;
  wire n15 = ~(n10 & n12);
  wire n16 = ~(n15 & n13);
  wire n17 = n15 ^ n13;
  wire n18 = ~(n7 & n16);
  assign O[0] = n3;
  assign O[1] = n10;
  assign O[2] = A[2];
  assign O[3] = n0;
  assign O[4] = n0;
  assign O[5] = A[2];
  assign O[6] = n6;
  assign O[7] = B[6];
  assign O[8] = 1'b1;
  assign O[9] = A[1];
  assign O[10] = A[3];
  assign O[11] = n10;
  assign O[12] = n1;
  assign O[13] = n14;
  assign O[14] = n17;
  assign O[15] = n18;
endmodule
