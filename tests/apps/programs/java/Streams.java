import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.zip.CRC32;

/**
 * Streams of bytes as c/stream.h explains them, read in three ways of Java: `blocking` reads, reads of as much as
 * `available` says, and `nio` channels with a selector.
 *
 * <p>Streams WAY serve PORT FILE, or Streams WAY fetch HOST PORT FILE down|up N
 */
final class Streams {
    private static final int PIECE = 65536;
    private static byte[] file;

    /** What a connection is to those who read from it and write to it. */
    interface Connection extends AutoCloseable {
        /** Read some bytes, at least one; -1 at the end. */
        int take(byte[] into, int at, int want) throws IOException, InterruptedException;

        void give(byte[] from, int size) throws IOException;

        @Override
        void close() throws IOException;
    }

    private record Plain(Socket socket, boolean asksAvailable) implements Connection {
        @Override
        public int take(byte[] into, int at, int want) throws IOException, InterruptedException {
            InputStream in = socket.getInputStream();
            if (!asksAvailable) {
                return in.read(into, at, want);
            }
            while (true) {
                for (int tries = 0; tries < 20; tries++) {
                    int there = in.available();
                    if (there > 0) {
                        return in.read(into, at, Math.min(there, want));
                    }
                    Thread.sleep(1);
                }
                // available() does not tell the end: now and then it is asked for.
                socket.setSoTimeout(1);
                try {
                    return in.read(into, at, 1);
                } catch (SocketTimeoutException e) {
                    continue;
                }
            }
        }

        @Override
        public void give(byte[] from, int size) throws IOException {
            socket.getOutputStream().write(from, 0, size);
        }

        @Override
        public void close() throws IOException {
            socket.close();
        }
    }

    private record Channel(SocketChannel channel, Selector selector) implements Connection {
        static Channel of(SocketChannel channel) throws IOException {
            Selector selector = Selector.open();
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_READ);
            return new Channel(channel, selector);
        }

        private void await(int what) throws IOException {
            channel.keyFor(selector).interestOps(what);
            selector.select();
            selector.selectedKeys().clear();
        }

        @Override
        public int take(byte[] into, int at, int want) throws IOException {
            ByteBuffer buffer = ByteBuffer.wrap(into, at, want);
            int got;
            while ((got = channel.read(buffer)) == 0) {
                await(SelectionKey.OP_READ);
            }
            return got;
        }

        @Override
        public void give(byte[] from, int size) throws IOException {
            ByteBuffer buffer = ByteBuffer.wrap(from, 0, size);
            while (buffer.hasRemaining()) {
                if (channel.write(buffer) == 0) {
                    await(SelectionKey.OP_WRITE);
                }
            }
        }

        @Override
        public void close() throws IOException {
            channel.close();
            selector.close();
        }
    }

    private static boolean takeAll(Connection from, byte[] into) throws IOException, InterruptedException {
        for (int at = 0; at < into.length; ) {
            int got = from.take(into, at, into.length - at);
            if (got < 0) {
                return false;
            }
            at += got;
        }
        return true;
    }

    private static byte[] answer(CRC32 crc) {
        return String.format("C%015d", crc.getValue()).getBytes(StandardCharsets.US_ASCII);
    }

    private static boolean absorb(Connection from, long size, char kind) throws IOException, InterruptedException {
        byte[] piece = new byte[PIECE];
        CRC32 crc = new CRC32();
        while (size > 0) {
            int got = from.take(piece, 0, (int) Math.min(size, PIECE));
            if (got < 0 && kind == 'H') {
                break;
            }
            if (got < 0) {
                return false;
            }
            crc.update(piece, 0, got);
            size -= got;
            if (kind == 'E') {
                from.give(piece, got);
            }
            if (kind == 'S') {
                Thread.sleep(15);
            }
        }
        if (kind != 'E') {
            from.give(answer(crc), 16);
        }
        return kind != 'H';
    }

    private static void serve(Connection connection) {
        try (connection) {
            byte[] head = new byte[16];
            boolean goes = true;
            while (goes && takeAll(connection, head)) {
                char kind = (char) head[0];
                long size = Long.parseLong(new String(head, 1, 15, StandardCharsets.US_ASCII));
                if (kind == 'G' || kind == 'X') {
                    connection.give(file, (int) size);
                    goes = kind == 'G';
                } else {
                    goes = absorb(connection, kind == 'H' ? Long.MAX_VALUE : size, kind);
                }
            }
        } catch (IOException | InterruptedException e) {
            System.err.println(e);
        }
    }

    private static void fetch(Connection connection, boolean down, int size) throws IOException, InterruptedException {
        connection.give(String.format("%s%015d", down ? "G" : "P", size).getBytes(StandardCharsets.US_ASCII), 16);
        if (!down) {
            connection.give(file, size);
        }
        CRC32 crc = new CRC32();
        crc.update(file, 0, size);
        byte[] wanted = down ? Arrays.copyOf(file, size) : answer(crc);
        byte[] got = new byte[wanted.length];
        if (!takeAll(connection, got) || !Arrays.equals(got, wanted)) {
            throw new IOException("other bytes than were sent");
        }
    }

    public static void main(String[] args) throws Exception {
        String way = args[0];
        boolean serves = args[1].equals("serve");
        file = Files.readAllBytes(Path.of(args[serves ? 3 : 4]));
        if (!serves) {
            InetSocketAddress to = new InetSocketAddress(args[2], Integer.parseInt(args[3]));
            try (Socket socket = way.equals("nio") ? null : new Socket(to.getAddress(), to.getPort());
                    Connection connection =
                            socket == null
                                    ? Channel.of(SocketChannel.open(to))
                                    : new Plain(socket, way.equals("available"))) {
                fetch(connection, args[5].equals("down"), Integer.parseInt(args[6]));
            }
            return;
        }
        int port = Integer.parseInt(args[2]);
        if (way.equals("nio")) {
            ServerSocketChannel listener = ServerSocketChannel.open().bind(new InetSocketAddress(port), 512);
            while (true) {
                Connection connection = Channel.of(listener.accept());
                new Thread(() -> serve(connection)).start();
            }
        }
        ServerSocket listener = new ServerSocket(port, 512);
        while (true) {
            Connection connection = new Plain(listener.accept(), way.equals("available"));
            new Thread(() -> serve(connection)).start();
        }
    }
}
