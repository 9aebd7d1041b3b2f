// Node's http, or http2 without TLS: GET /bytes/N sends N bytes of the file, PUT answers the CRC-32 of the body.
//   node web.js http|http2 PORT FILE
"use strict";
const fs = require("fs");
const { crc32 } = require("./crc32.js");

const [kind, port, path] = process.argv.slice(2);
const file = fs.readFileSync(path);

const server = require(kind).createServer({}, async (request, response) => {
  try {
    if (request.method === "GET") {
      const size = Number(request.url.split("/").pop());
      response.writeHead(200, { "content-length": size });
      response.end(file.subarray(0, size));
      return;
    }
    let crc = 0;
    for await (const piece of request) crc = crc32(piece, crc);
    response.end("C" + String(crc).padStart(15, "0"));
  } catch (error) {
    console.error(String(error));
  }
});
server.on("error", (error) => console.error(String(error)));
server.listen(Number(port), "0.0.0.0", 512);
