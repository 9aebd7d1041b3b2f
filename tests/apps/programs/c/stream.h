/* A server and a client for streams of bytes, around one way to read or to write that each program defines.

   PROGRAM serve PORT FILE               for ever, a thread for each connection
   PROGRAM fetch HOST PORT FILE down N   ask for N bytes and compare them with the file
   PROGRAM fetch HOST PORT FILE up N     send N bytes of the file and compare the checksum that comes back

   A request has 16 bytes, a letter and 15 digits:  P: n bytes follow, answer their CRC-32.  S: the same, read slowly.
   G: send n bytes of the file.  E: send back n bytes as they come.  H: read until the end, answer the CRC-32.
   X: send n bytes and close. An answer has 16 bytes as well, "C" and the number. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE 65536

static const char *file;
static int file_fd;

/* What a program has of its own. open_socket: what then listens or dials. prepare: once for a connection. take: at least
   1 and at most `want` bytes; 0 at the end, -1 on an error. give: all of it; 0, or -1 on an error. */
static int open_socket(void);
static int prepare(int fd);
static ssize_t take(int fd, char *into, size_t want);
static int give(int fd, const char *from, size_t size);

#ifndef OPENS
static int open_socket(void) { return socket(AF_INET, SOCK_STREAM, 0); }
#endif
#ifndef PREPARES
static int prepare(int fd) {
    (void)fd;
    return 0;
}
#endif
#ifndef TAKES
static ssize_t take(int fd, char *into, size_t want) { return recv(fd, into, want, 0); }
#endif

static int send_all(int fd, const char *from, size_t size) {
    while (size) {
        ssize_t sent = send(fd, from, size, 0);
        if (sent < 0 && errno == EAGAIN && fcntl(fd, F_GETFL) & O_NONBLOCK) {
            struct pollfd one = {.fd = fd, .events = POLLOUT};
            poll(&one, 1, -1);
            continue;
        }
        if (sent < 0) {
            perror("send");
            return -1;
        }
        from += sent, size -= sent;
    }
    return 0;
}
#ifndef GIVES
static int give(int fd, const char *from, size_t size) { return send_all(fd, from, size); }
#endif

static uint32_t crc_of(uint32_t crc, const char *data, size_t size) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t bits = i;
            for (int k = 0; k < 8; k++)
                bits = bits & 1 ? bits >> 1 ^ 0xEDB88320u : bits >> 1;
            table[i] = bits;
        }
    crc = ~crc;
    while (size--)
        crc = crc >> 8 ^ table[(crc ^ (uint8_t)*data++) & 255];
    return ~crc;
}

/* Read `want` bytes in the program's own way; less is an error. */
static int take_all(int fd, char *into, size_t want) {
    while (want) {
        ssize_t got = take(fd, into, want);
        if (got < 0)
            perror("take");
        if (got <= 0)
            return -1;
        into += got, want -= got;
    }
    return 0;
}

static int answer(int fd, uint32_t crc) {
    char text[17];
    snprintf(text, sizeof text, "C%015u", crc);
    return send_all(fd, text, 16);
}

/* Read `size` bytes (at the most; until the end, if that is allowed) and answer their checksum, or send them back. */
static int absorb(int fd, size_t size, char kind) {
    static __thread char piece[PIECE];
    uint32_t crc = 0;
    while (size) {
        ssize_t got = take(fd, piece, size < PIECE ? size : PIECE);
        if (got == 0 && kind == 'H')
            break;
        if (got < 0)
            perror("take");
        if (got <= 0)
            return -1;
        crc = crc_of(crc, piece, got);
        size -= got;
        if (kind == 'E' && send_all(fd, piece, got))
            return -1;
        if (kind == 'S')
            usleep(15000);
    }
    return kind == 'E' ? 0 : answer(fd, crc);
}

static void *serve(void *arg) {
    int fd = (int)(intptr_t)arg;
    char head[17] = "";
    int going = prepare(fd) == 0;
    while (going && take_all(fd, head, 16) == 0) {
        size_t size = strtoull(head + 1, NULL, 10);
        if (head[0] == 'G' || head[0] == 'X')
            going = give(fd, file, size) == 0 && head[0] == 'G';
        else if (head[0] == 'H')
            going = absorb(fd, SIZE_MAX, 'H') == 0 && 0;
        else
            going = absorb(fd, size, head[0]) == 0;
    }
    close(fd);
    return NULL;
}

static int listen_on(int port) {
    int fd = open_socket(), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 512)) {
        perror("listen");
        exit(1);
    }
    while (1) {
        int connection = accept(fd, NULL, NULL);
        pthread_t thread;
        if (connection >= 0 && !pthread_create(&thread, NULL, serve, (void *)(intptr_t)connection))
            pthread_detach(thread);
    }
}

static int fetch(const char *host, int port, int down, size_t size) {
    int fd = open_socket();
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    char head[17], *got = malloc(size + 16);
    inet_pton(AF_INET, host, &to.sin_addr);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) || prepare(fd)) {
        perror("connect");
        return 1;
    }
    snprintf(head, sizeof head, "%c%015zu", down ? 'G' : 'P', size);
    if (send_all(fd, head, 16) || (!down && give(fd, file, size)) || take_all(fd, got, down ? size : 16))
        return 1;
    snprintf(head, sizeof head, "C%015u", crc_of(0, file, size));
    if (down ? memcmp(got, file, size) : memcmp(got, head, 16)) {
        fprintf(stderr, "other bytes than were sent\n");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    int serves = argc == 4 && !strcmp(argv[1], "serve"), fetches = argc == 7 && !strcmp(argv[1], "fetch");
    struct stat seen;
    if (!serves && !fetches)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    crc_of(0, "", 0);
    file_fd = open(argv[serves ? 3 : 4], O_RDONLY);
    if (file_fd < 0 || fstat(file_fd, &seen)) {
        perror("file");
        return 1;
    }
    file = mmap(NULL, seen.st_size, PROT_READ, MAP_PRIVATE, file_fd, 0);
    if (serves)
        listen_on(atoi(argv[2]));
    return fetch(argv[2], atoi(argv[3]), !strcmp(argv[5], "down"), strtoull(argv[6], NULL, 10));
}
