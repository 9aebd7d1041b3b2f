/* Sends what is in the file by sendfile(). */
#define GIVES
#include <sys/sendfile.h>

#include "stream.h"

static int give(int fd, const char *from, size_t size) {
    off_t at = from - file, end = at + (off_t)size;
    while (at < end)
        if (sendfile(fd, file_fd, &at, end - at) <= 0) {
            perror("sendfile");
            return -1;
        }
    return 0;
}
