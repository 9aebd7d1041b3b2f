/* MSG_WAITALL: all that was asked for, or the end. */
#define TAKES
#include "stream.h"

static ssize_t take(int fd, char *into, size_t want) {
    ssize_t got = recv(fd, into, want, MSG_WAITALL);
    if (got > 0 && (size_t)got < want && recv(fd, into + got, 1, MSG_PEEK) != 0) {
        fprintf(stderr, "MSG_WAITALL gave %zd of %zu bytes, and that was not the end\n", got, want);
        errno = EPROTO;
        return -1;
    }
    return got;
}
