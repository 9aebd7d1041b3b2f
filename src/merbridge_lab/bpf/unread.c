// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Run on demand by BPF_PROG_TEST_RUN, attached to nothing: what detaching must know about a socket before it
// may take it out of `peers`. To take it out loses what was redirected to it and not read yet, silently.

#include "common.h"
#include "queue.h"

// args: struct sock *, its cookie. Gives bit 0: the socket is still there; bit 1: unread redirected bytes;
// bits 2 and up: system calls in progress on the socket at this moment.
int merlab_unread(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0], cookie = ctx->args[1];
    struct kernel *kernel = this_kernel();
    u64 psock;
    u32 refs = 1, answer;

    if (!kernel || !is_still(kernel, sk, cookie))
        return 0;
    psock = psock_of(kernel, sk);
    if (!psock)
        return 0;
    PEEK(refs, psock + kernel->psock_refcnt);
    answer = 1 | (has_unread(kernel, psock) ? 2 : 0);
    if (refs > 1) // `peers` holds one, every send and receive in progress another
        answer |= (refs - 1) << 2;
    return answer & 0x7fffffff;
}
