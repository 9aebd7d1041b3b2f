// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Run once after loading, on a sockhash of the loader's own, where the kernel hides the addresses of its
// functions (kernel.kptr_restrict): which function does a blocked reader of TCP wait with? The loader sends
// on a socket that such a reader waits for.

#include "common.h"
#include "queue.h"

int merlab_learn(struct sk_msg_md *msg) {
    struct kernel *kernel = this_kernel();
    struct bpf_sock *sk = msg->sk;
    u64 address, wq = 0, head, first = 0, func = 0;

    if (!kernel || !sk)
        return SK_PASS;
    // By way of memory, as the verifier allows no arithmetic on a pointer to a socket.
    kernel->woken = (u64)sk;
    BARRIER;
    address = kernel->woken;
    kernel->woken = 0;
    PEEK(wq, address + kernel->sk_wq);
    head = wq + kernel->wq_head;
    PEEK(first, head);
    if (first != head)
        PEEK(func, first - kernel->waiter_entry + kernel->waiter_func);
    kernel->woken = func;
    return SK_PASS;
}
