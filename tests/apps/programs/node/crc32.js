// CRC-32, which the zlib of Node has only from version 22 on.
"use strict";
const table = new Int32Array(256).map((_, each) => {
  for (let k = 0; k < 8; k++) each = each & 1 ? (each >>> 1) ^ 0xedb88320 : each >>> 1;
  return each;
});

exports.crc32 = (data, crc = 0) => {
  crc = ~crc;
  for (let i = 0; i < data.length; i++) crc = (crc >>> 8) ^ table[(crc ^ data[i]) & 255];
  return ~crc >>> 0;
};
