// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Looking into sockets of the kernel. The offsets are in struct kernel and come from this kernel's BTF
// (dataplane/btf.py): without kernel headers, or with those of another version, the compiler's idea of these
// structures would be silently wrong.
//
// A pointer to a socket may outlive the socket; its memory is only ever reused for another TCP socket
// (SLAB_TYPESAFE_BY_RCU), so reading is harmless, and the cookie tells whether it is still the same one.

// Where kallsyms hides addresses (kernel.kptr_restrict=2, no CAP_SYSLOG), BCC takes this helper for missing
// and defines it as the old bpf_probe_read(), which the kernel refuses to these programs.
#undef bpf_probe_read_kernel
#define PEEK(to, address) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(address))

INLINE int is_still(struct kernel *kernel, u64 sk, u64 cookie) {
    u64 now = 0;
    return sk && !PEEK(now, sk + kernel->sk_cookie) && now == cookie;
}

// The psock: what the kernel hangs on a socket that is in a sockhash. The low bits of sk_user_data are flags.
INLINE u64 psock_of(struct kernel *kernel, u64 sk) {
    u64 psock = 0;
    PEEK(psock, sk + kernel->sk_user_data);
    return psock & ~7ULL;
}

// Are redirected bytes waiting to be read there?
INLINE int has_unread(struct kernel *kernel, u64 psock) {
    u64 first = 0, head = psock + kernel->psock_ingress_msg;
    PEEK(first, head);
    return first != head;
}

// Could the kernel refuse to charge this message to the receiver? The sender would be told ENOMEM, where TCP
// makes it wait.
INLINE int memory_short(struct kernel *kernel, u64 sk, u32 size) {
    s32 forward = 0;
    s64 usage = 0, max = 0;
    u64 memcg = 0, counter;
    int i;

    if (!kernel->sk_memcg)
        return 0;
    PEEK(forward, sk + kernel->sk_forward_alloc);
    if (forward > 0 && (u32)forward >= size)
        return 0; // charged before
    PEEK(memcg, sk + kernel->sk_memcg);
    memcg &= ~7ULL; // flags
    if (!memcg)
        return 0;
    counter = memcg + kernel->memcg_memory;
#pragma unroll
    for (i = 0; i < MEMORY_LEVELS; i++) {
        PEEK(usage, counter + kernel->counter_usage);
        PEEK(max, counter + kernel->counter_max);
        if (usage + (size >> 12) + MEMORY_SPARE > max)
            return 1;
        PEEK(counter, counter + kernel->counter_parent);
        if (!counter)
            return 0;
    }
    return 0;
}

// Is a reader of this socket asleep in tcp_recvmsg(), or in a system call that may get there? It would not
// see redirected bytes before it has all that it waits for. Whoever waits by poll or epoll has another
// function.
INLINE int reader_asleep(struct kernel *kernel, u64 sk) {
    u32 owned = 1;
    u64 wq = 0, head, next = 0, func = 0;
    int i;

    PEEK(owned, sk + kernel->sk_owned);
    if (owned)
        return 1;
    PEEK(wq, sk + kernel->sk_wq);
    head = wq + kernel->wq_head;
    PEEK(next, head);
#pragma unroll
    for (i = 0; i < WAITERS; i++) {
        if (next == head)
            return 0;
        PEEK(func, next - kernel->waiter_entry + kernel->waiter_func);
        if (func == kernel->woken)
            return 1;
        PEEK(next, next);
    }
    return next != head; // more than we look at
}
