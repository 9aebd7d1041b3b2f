/* Peeks at what is there, and has it thrown away by MSG_TRUNC, which copies nothing. */
#define TAKES
#include "stream.h"

static ssize_t take(int fd, char *into, size_t want) {
    ssize_t ahead = recv(fd, into, want, MSG_PEEK);
    if (ahead <= 0)
        return ahead;
    for (ssize_t left = ahead; left;) {
        ssize_t gone = recv(fd, NULL, left, MSG_TRUNC);
        if (gone <= 0)
            return -1;
        left -= gone;
    }
    return ahead;
}
