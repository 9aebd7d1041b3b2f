/* recvmmsg(): several messages in one call; on a stream, pieces that follow each other. */
#define TAKES
#include "stream.h"

#define MESSAGES 4

static ssize_t take(int fd, char *into, size_t want) {
    struct mmsghdr messages[MESSAGES] = {0};
    struct iovec places[MESSAGES];
    static __thread char pieces[MESSAGES][PIECE / MESSAGES];
    size_t room = 0, each = sizeof pieces[0];
    int count = 0;
    for (; count < MESSAGES && room < want; count++) {
        size_t size = want - room < each ? want - room : each;
        places[count] = (struct iovec){pieces[count], size};
        messages[count].msg_hdr = (struct msghdr){.msg_iov = &places[count], .msg_iovlen = 1};
        room += size;
    }
    int got = recvmmsg(fd, messages, count, MSG_WAITFORONE, NULL);
    size_t all = 0;
    for (int i = 0; i < got; i++) {
        memcpy(into + all, pieces[i], messages[i].msg_len);
        all += messages[i].msg_len;
    }
    return got < 0 ? -1 : (ssize_t)all;
}
