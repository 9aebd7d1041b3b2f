/* MSG_PEEK before every read: both must show the same. */
#define TAKES
#include "stream.h"

static ssize_t take(int fd, char *into, size_t want) {
    static __thread char seen[PIECE];
    ssize_t ahead = recv(fd, seen, want < PIECE ? want : PIECE, MSG_PEEK);
    if (ahead <= 0)
        return ahead;
    ssize_t got = recv(fd, into, ahead, 0);
    if (got != ahead || memcmp(seen, into, ahead)) {
        fprintf(stderr, "peeked %zd bytes, then read %zd, or others\n", ahead, got);
        errno = EPROTO;
        return -1;
    }
    return got;
}
