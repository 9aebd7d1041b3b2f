/* kTLS at both ends, with a key that both know: what is sent is encrypted by the kernel, and so is what is read. */
#define PREPARES
#include <linux/tls.h>

#include "stream.h"

#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef SOL_TLS
#define SOL_TLS 282
#endif

static int prepare(int fd) {
    struct tls12_crypto_info_aes_gcm_128 key = {
        .info = {.version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128},
        .iv = "merlab-i",
        .key = "merlab-key-of-16",
        .salt = "salt",
        .rec_seq = {0},
    };
    if (setsockopt(fd, SOL_TCP, TCP_ULP, "tls", 4)) {
        perror("TCP_ULP");
        return -1;
    }
    if (setsockopt(fd, SOL_TLS, TLS_TX, &key, sizeof key) || setsockopt(fd, SOL_TLS, TLS_RX, &key, sizeof key)) {
        perror("SOL_TLS");
        return -1;
    }
    return 0;
}
