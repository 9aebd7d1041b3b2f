// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// sk_msg: every send() on a socket in `peers` comes through here, and goes straight into the receive queue of
// the other end, or by TCP.
//
// Redirecting alone has no flow control: a receiver that does not read would be handed gigabytes. So once it
// holds too much, this direction goes over to TCP, whose window makes the sender wait. One way and for good,
// which keeps the order without more ado: a receiver always empties the redirected queue before it looks at
// TCP's. Coming back from TCP needs more care (no byte may be left in flight); `may_redirect` is the place
// for it.

#include "common.h"
#include "queue.h"

// Why a message goes by TCP, or 0.
INLINE u32 receiver_full(struct flow *flow, u64 sk, u32 size) {
    s32 charged = 0, room = 0;
    u8 locks = 0;
    u64 high = HIGH_WATER, psock;

    PEEK(locks, sk + OFF_SK_USERLOCKS);
    if ((locks >> SHIFT_SK_USERLOCKS) & 2) { // SOCK_RCVBUF_LOCK: the receiver asked for a size
        PEEK(room, sk + OFF_SK_RCVBUF);
        if (room > 0 && (u64)room / 4 < high)
            high = room / 4;
    }
    PEEK(charged, sk + OFF_SK_RMEM_ALLOC);
    if (charged < 0)
        charged = 0;
#ifndef PSOCK_CHARGES_RMEM
    // Before Linux 6.13 redirected bytes are charged to nobody: count them ourselves.
    psock = psock_of(sk);
    if (!psock || !has_unread(psock))
        flow->unread = 0;
    flow->unread += size;
    if (flow->unread > high)
        return 1;
#endif
    return (u64)charged > high;
}

// Has the sender given bytes to TCP that the receiver has not read? A send() that began before the handshake
// was over does so behind our back. Redirected bytes have no sequence numbers: until then both stand at the
// first.
INLINE int bytes_on_tcp(u64 sender, u64 receiver) {
    u32 written = 0, copied = 1;

    PEEK(written, sender + OFF_TCP_WRITE_SEQ);
    PEEK(copied, receiver + OFF_TCP_COPIED_SEQ);
    return written != copied;
}

// Gives 0 if this message may be redirected, else the counter of the reason why not.
INLINE u32 may_redirect(struct flow *flow, struct pair *pair, u32 to, u32 size) {
    struct config *config = configuration();
    u64 sk, cookie, own;

    if (flow->tcp)
        return COUNTER_PASSED_ON_TCP;
    if (!config || !config->redirect)
        return COUNTER_PASSED_REDIRECT_OFF;
    if (!pair)
        return COUNTER_PASSED_NOT_PAIRED;
    sk = pair->sk[to];
    cookie = pair->cookie[to];
    if (!is_still(sk, cookie))
        return COUNTER_PASSED_NOT_PAIRED;
    own = pair->sk[1 - to];
    if (bytes_on_tcp(own, sk))
        return COUNTER_PASSED_ON_TCP;
    if (receiver_full(flow, sk, size))
        return COUNTER_PASSED_RECEIVER_FULL;
    return 0;
}

int merlab_sk_msg(struct sk_msg_md *msg) {
    struct bpf_sock *sk = msg->sk;
    u32 size = msg->size;
    u64 netns = bpf_get_netns_cookie(msg);
    struct end other = {};
    struct flow *flow;
    struct pair *pair;
    u32 leg, side, why;
    long verdict;

    if (!sk)
        return SK_PASS;
    flow = merlab_flows.sk_storage_get(sk, 0, 0);
    if (!flow)
        return SK_PASS;
    leg = flow->leg;
    side = flow->side & 1;
    other.pair = flow->pair;
    other.side = 1 - side;
    pair = merlab_pairs.lookup(&other.pair);
    why = may_redirect(flow, pair, 1 - side, size);
    if (!why) {
        verdict = merlab_peers.msg_redirect_hash(msg, &other, BPF_F_INGRESS);
        if (verdict == SK_PASS) {
            if (leg >= LEG_OUTBOUND && leg <= LEG_INBOUND) {
                count(netns, COUNTER_OUTBOUND_REDIRECTED_MESSAGES + leg - LEG_OUTBOUND, 1);
                count(netns, COUNTER_OUTBOUND_REDIRECTED_BYTES + leg - LEG_OUTBOUND, size);
            }
            if (pair) {
                __sync_fetch_and_add(&pair->messages[side], 1);
                __sync_fetch_and_add(&pair->bytes[side], size);
            }
            SAY("redirect pair=%llx side=%u bytes=%u", other.pair, side, size);
            return SK_PASS;
        }
        why = COUNTER_PASSED_REDIRECT_FAILED;
    }
    flow->tcp = 1;
    if (pair)
        pair->tcp[side] = 1;
    count(netns, why, 1);
    SAY("passed pair=%llx side=%u reason=%u", other.pair, side, why);
    return SK_PASS;
}
