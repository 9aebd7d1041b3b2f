import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;
import java.util.zip.CRC32;

/** Java's own HTTP server: GET /bytes/N sends N bytes of the file, PUT answers the CRC-32 of the body. */
final class Web {
    private static byte[] file;

    private static void handle(HttpExchange exchange) throws IOException {
        try (exchange) {
            if (exchange.getRequestMethod().equals("GET")) {
                String path = exchange.getRequestURI().getPath();
                int size = Integer.parseInt(path.substring(path.lastIndexOf('/') + 1));
                exchange.sendResponseHeaders(200, size);
                exchange.getResponseBody().write(file, 0, size);
                return;
            }
            CRC32 crc = new CRC32();
            byte[] piece = new byte[65536];
            try (InputStream body = exchange.getRequestBody()) {
                for (int got; (got = body.read(piece)) >= 0; ) {
                    crc.update(piece, 0, got);
                }
            }
            exchange.sendResponseHeaders(200, 16);
            exchange.getResponseBody()
                    .write(String.format("C%015d", crc.getValue()).getBytes(StandardCharsets.US_ASCII));
        }
    }

    public static void main(String[] args) throws IOException {
        file = Files.readAllBytes(Path.of(args[1]));
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 512);
        server.createContext("/", Web::handle);
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
