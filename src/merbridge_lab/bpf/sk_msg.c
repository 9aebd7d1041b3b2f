// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// sk_msg: every send() on a socket in `peers` comes through here, and goes straight into the receive queue of
// the other end, or by TCP.
//
// Redirecting alone has no flow control: a receiver that does not read would be handed gigabytes. So while it
// holds too much, messages go by TCP, whose window makes the sender wait. A receiver always empties the
// redirected queue before it looks at TCP's, so going over to TCP is always in order. Coming back is in order
// once every byte that TCP was given has been read, and no reader sleeps where it looks at TCP's queue only.

#include "common.h"
#include "queue.h"

// Would the receiver hold too much with this message?
INLINE int receiver_full(struct kernel *kernel, struct flow *flow, u64 sk, u32 size) {
    s32 charged = 0, room = 0;
    u64 high = HIGH_WATER, psock;
    u8 locks = 0;

    PEEK(locks, sk + kernel->sk_userlocks);
    if ((locks >> kernel->sk_userlocks_shift) & 2) { // SOCK_RCVBUF_LOCK: the receiver asked for a size
        PEEK(room, sk + kernel->sk_rcvbuf);
        if (room > 0 && (u64)room / 4 < high)
            high = room / 4;
    }
    PEEK(charged, sk + kernel->sk_rmem_alloc);
    if (charged < 0)
        charged = 0;
    if (!kernel->charges) {
        // This kernel charges redirected bytes to nobody: count them ourselves.
        psock = psock_of(kernel, sk);
        if (!psock || !has_unread(kernel, psock))
            flow->unread = 0;
        if (flow->unread + size > high)
            return 1;
    }
    return (u64)charged + size > high;
}

// Does the kernel encrypt or decrypt here (kTLS)? A program is shown what is not encrypted yet, and what is
// redirected is not decrypted.
INLINE int has_ulp(struct kernel *kernel, u64 sk) {
    u64 ops = 0;

    PEEK(ops, sk + kernel->sk_ulp_ops);
    return ops != 0;
}

// Is it time for a packet? One message, and its acknowledgement, serve both directions. A sidecar polls, an
// app may sleep in recv(), and then its direction does not come back from TCP for a while: so a message to an
// app waits for one of the other direction for as long again.
INLINE int is_refresh_due(struct pair *pair, u32 to) {
    u64 now = bpf_ktime_get_coarse_ns();
    u64 wait = pair->leg != LEG_MESH && (pair->leg == LEG_INBOUND) == (to == 1) ? 2 * REFRESH : REFRESH;

    if (now - pair->refreshed < wait)
        return 0;
    pair->refreshed = now;
    return 1;
}

// Gives 0 if this message may be redirected, else the counter of the reason why not.
INLINE u32 may_redirect(struct kernel *kernel, struct flow *flow, struct pair *pair, u32 to, u32 size) {
    u32 written = 0, copied = 1;
    struct config *config = configuration();
    u64 sk, cookie, own = flow->sk;

    if (!config || !config->redirect)
        return COUNTER_PASSED_REDIRECT_OFF;
    if (has_ulp(kernel, own))
        return COUNTER_PASSED_KTLS;
    if (!pair)
        return COUNTER_PASSED_NOT_PAIRED;
    sk = pair->sk[to];
    cookie = pair->cookie[to];
    if (!is_still(kernel, sk, cookie))
        return COUNTER_PASSED_NOT_PAIRED;
    if (has_ulp(kernel, sk))
        return COUNTER_PASSED_KTLS;
    // Redirected bytes have no sequence numbers: these two count TCP's only.
    PEEK(written, own + kernel->tcp_write_seq);
    PEEK(copied, sk + kernel->tcp_copied_seq);
    if (written != copied)
        return COUNTER_PASSED_ON_TCP;
    if (written != flow->written) { // bytes went by TCP since this was looked at
        if (!kernel->woken)
            return COUNTER_PASSED_ON_TCP;
        if (reader_asleep(kernel, sk))
            return COUNTER_PASSED_READER_ASLEEP;
        flow->written = written;
    }
    if (receiver_full(kernel, flow, sk, size))
        return COUNTER_PASSED_RECEIVER_FULL;
    if (memory_short(kernel, sk, size))
        return COUNTER_PASSED_MEMORY;
    // Where nothing comes back from TCP, one such message would be the end of redirecting.
    return kernel->woken && is_refresh_due(pair, to) ? COUNTER_PASSED_REFRESH : 0;
}

// The counter of the bytes, where `why` is that of the messages. The numbers of reasons are in recorded
// traces, so they stay as they are.
INLINE u32 bytes_of(u32 why) {
    if (why == COUNTER_PASSED_REFRESH)
        return COUNTER_TCP_BYTES_REFRESH;
    if (why >= COUNTER_PASSED_READER_ASLEEP)
        return why - COUNTER_PASSED_READER_ASLEEP + COUNTER_TCP_BYTES_READER_ASLEEP;
    return why - COUNTER_PASSED_NOT_PAIRED + COUNTER_TCP_BYTES_NOT_PAIRED;
}

// A message that goes by TCP, with the counter of the reason; 0 if its leg is one that is not redirected.
INLINE void count_by_tcp(u64 netns, u32 leg, u32 why, u32 size) {
    struct counters *counters = merlab_counters.lookup(&netns);

    if (!counters)
        return;
    if (leg >= LEG_OUTBOUND && leg <= LEG_INBOUND) {
        add(counters, COUNTER_OUTBOUND_TCP_MESSAGES + leg - LEG_OUTBOUND, 1);
        add(counters, COUNTER_OUTBOUND_TCP_BYTES + leg - LEG_OUTBOUND, size);
    }
    if (!why)
        return;
    add(counters, why, 1);
    add(counters, bytes_of(why), size);
}

int merlab_sk_msg(struct sk_msg_md *msg) {
    struct kernel *kernel = this_kernel();
    struct bpf_sock *sk = msg->sk;
    u32 size = msg->size;
    u64 netns = bpf_get_netns_cookie(msg);
    struct end own = {}, other = {};
    struct flow *flow;
    struct pair *pair;
    u32 leg, side, why, state;

    if (!sk || !kernel)
        return SK_PASS;
    state = sk->state;
    BARRIER;
    flow = merlab_flows.sk_storage_get(sk, 0, 0);
    if (!flow)
        return SK_PASS;
    leg = flow->leg;
    if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT) {
        if (flow->redirects)
            count(netns, COUNTER_PASSED_ENDED, 1);
        return SK_PASS;
    }
    if (!flow->redirects) {
        count_by_tcp(netns, leg, 0, size);
        return SK_PASS;
    }
    side = flow->side & 1;
    own.handshake = other.handshake = flow->handshake;
    own.side = side;
    other.side = 1 - side;
    pair = merlab_pairs.lookup(&own.handshake);
    why = may_redirect(kernel, flow, pair, 1 - side, size);
    if (!why && merlab_peers.msg_redirect_hash(msg, &other, BPF_F_INGRESS) != SK_PASS)
        why = COUNTER_PASSED_REDIRECT_FAILED;
    if (!why) {
        flow->unread += size;
        if (leg >= LEG_OUTBOUND && leg <= LEG_INBOUND) {
            count(netns, COUNTER_OUTBOUND_REDIRECTED_MESSAGES + leg - LEG_OUTBOUND, 1);
            count(netns, COUNTER_OUTBOUND_REDIRECTED_BYTES + leg - LEG_OUTBOUND, size);
        }
        if (pair) {
            __sync_fetch_and_add(&pair->messages[side], 1);
            __sync_fetch_and_add(&pair->bytes[side], size);
            pair->tcp[side] = 0;
        }
        TELL(EVENT_REDIRECT, .pair = flow->pair, .side = side, .size = size);
        return SK_PASS;
    }
    if (pair)
        pair->tcp[side] = 1;
    count_by_tcp(netns, leg, why, size);
    TELL(EVENT_PASSED, .pair = flow->pair, .side = side, .reason = why);
    // To the socket's own way out, instead of just passing: where that ends in EAGAIN, the kernel would keep
    // the verdict, and not ask for the messages that follow. With kTLS only passing leads to encryption.
    if (why != COUNTER_PASSED_KTLS && why != COUNTER_PASSED_REDIRECT_OFF)
        merlab_peers.msg_redirect_hash(msg, &own, 0);
    return SK_PASS;
}
