/* Waits until the socket is readable, asks FIONREAD how much there is, and reads exactly that. */
#define TAKES
#include "stream.h"

static ssize_t take(int fd, char *into, size_t want) {
    while (1) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        int there = 0;
        char byte;
        if (poll(&one, 1, -1) < 0 || ioctl(fd, FIONREAD, &there) < 0)
            return -1;
        if (there > 0)
            return recv(fd, into, (size_t)there < want ? (size_t)there : want, 0);
        if (recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return 0; /* readable and nothing there is how the end looks */
        usleep(1000);
    }
}
