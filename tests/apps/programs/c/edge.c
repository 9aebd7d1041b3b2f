/* epoll, edge-triggered: reads until "try again", and only then waits for the next edge. */
#define PREPARES
#define TAKES
#include <sys/epoll.h>

#include "stream.h"

static __thread int epoll;

static int prepare(int fd) {
    struct epoll_event edge = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
    epoll = epoll_create1(0);
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &edge);
}

static ssize_t take(int fd, char *into, size_t want) {
    while (1) {
        struct epoll_event seen;
        ssize_t got = recv(fd, into, want, 0);
        if (got >= 0 || errno != EAGAIN)
            return got;
        epoll_wait(epoll, &seen, 1, -1);
    }
}
