// Streams of bytes as c/stream.h explains them, by Node's net.
//   node streams.js serve PORT FILE, or node streams.js fetch HOST PORT FILE down|up N
"use strict";
const fs = require("fs");
const net = require("net");
const { crc32 } = require("./crc32.js");

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const answer = (crc) => "C" + String(crc).padStart(15, "0");
const give = (socket, data) => new Promise((done) => (socket.write(data) ? done() : socket.once("drain", done)));

async function serve(socket, file) {
  let head = Buffer.alloc(0), kind = "", left = 0, crc = 0;
  for await (let data of socket.iterator({ destroyOnReturn: false })) {
    while (data.length) {
      if (!left) {
        const more = data.subarray(0, 16 - head.length);
        head = Buffer.concat([head, more]);
        data = data.subarray(more.length);
        if (head.length < 16) break;
        kind = String.fromCharCode(head[0]);
        const size = Number(head.toString("latin1", 1));
        head = Buffer.alloc(0);
        crc = 0;
        if (kind === "G" || kind === "X") {
          await give(socket, file.subarray(0, size));
          if (kind === "X") return socket.end();
        } else {
          left = kind === "H" ? Infinity : size;
        }
        continue;
      }
      const piece = data.subarray(0, left);
      data = data.subarray(piece.length);
      left -= piece.length;
      crc = crc32(piece, crc);
      if (kind === "E") await give(socket, piece);
      if (kind === "S") await pause(15);
      if (!left && kind !== "E") socket.write(answer(crc));
    }
  }
  socket.end(kind === "H" ? answer(crc) : undefined);
}

function fetch(host, port, file, down, size) {
  const wanted = down ? file.subarray(0, size) : Buffer.from(answer(crc32(file.subarray(0, size))));
  const socket = net.connect(port, host);
  const got = [];
  let all = 0;
  socket.write((down ? "G" : "P") + String(size).padStart(15, "0"));
  if (!down) socket.write(file.subarray(0, size));
  socket.on("data", (data) => {
    got.push(data);
    all += data.length;
    if (all >= wanted.length) socket.end();
  });
  socket.on("error", (error) => {
    console.error(String(error));
    process.exit(1);
  });
  socket.on("close", () => {
    if (Buffer.concat(got).equals(wanted)) process.exit(0);
    console.error(`other bytes than were sent: ${all} of ${wanted.length}`);
    process.exit(1);
  });
}

const [what, ...rest] = process.argv.slice(2);
if (what === "serve") {
  const file = fs.readFileSync(rest[1]);
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", (error) => console.error(String(error)));
    serve(socket, file).catch((error) => console.error(String(error)));
  });
  server.listen(Number(rest[0]), "0.0.0.0", 512);
} else {
  fetch(rest[0], Number(rest[1]), fs.readFileSync(rest[2]), rest[3] === "down", Number(rest[4]));
}
