/* Sets SO_RCVLOWAT, so that the socket becomes readable only when there is as much as it wants. */
#define OPENS
#define PREPARES
#define TAKES
#include "stream.h"

#define MOST 16384

/* TCP, too, wakes below the mark where its window has no room for one more segment (tcp_stream_is_readable() in
   include/net/tcp.h). On loopback a segment may be as large as the window, so that this is often so with a slow reader;
   with small segments it is so only when far more than the mark can be read. */
static int open_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), segment = 1400;
    setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    return fd;
}

/* Room for much more than the mark. */
static int prepare(int fd) {
    int room = 212992;
    return setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
}

static ssize_t take(int fd, char *into, size_t want) {
    int mark = want < MOST ? (int)want : MOST;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark) || poll(&one, 1, -1) < 0)
        return -1;
    ssize_t got = recv(fd, into, want, MSG_DONTWAIT);
    /* Less is right only at the end. */
    if (got > 0 && got < mark && recv(fd, into + got, 1, MSG_DONTWAIT | MSG_PEEK) != 0) {
        fprintf(stderr, "readable with %zd bytes, below the mark of %d\n", got, mark);
        errno = EPROTO;
        return -1;
    }
    return got;
}
