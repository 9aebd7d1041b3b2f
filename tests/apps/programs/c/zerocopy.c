/* Sends by MSG_ZEROCOPY, and goes on only when the kernel has said that it is done with the memory. */
#define PREPARES
#define GIVES
#include <time.h>

#include <linux/errqueue.h>

#include "stream.h"

static int prepare(int fd) {
    int on = 1;
    return setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on);
}

/* Wait for the completions of `calls` calls. */
static int completed(int fd, unsigned calls) {
    while (calls) {
        struct pollfd one = {.fd = fd};
        char control[256];
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
        if (poll(&one, 1, -1) < 0)
            return -1;
        if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
            if (errno != EAGAIN || one.revents & POLLHUP)
                return -1;
            continue;
        }
        struct sock_extended_err *error = (void *)CMSG_DATA(CMSG_FIRSTHDR(&message));
        if (error->ee_origin != SO_EE_ORIGIN_ZEROCOPY)
            return -1;
        calls -= error->ee_data - error->ee_info + 1;
    }
    return 0;
}

static int give(int fd, const char *from, size_t size) {
    while (size) {
        unsigned calls = 0;
        for (; size && calls < 16; calls++) {
            ssize_t sent = send(fd, from, size < 262144 ? size : 262144, MSG_ZEROCOPY);
            if (sent < 0 && errno == ENOBUFS)
                break;
            if (sent < 0) {
                perror("send");
                return -1;
            }
            from += sent, size -= sent;
        }
        if (completed(fd, calls))
            return -1;
    }
    return 0;
}
