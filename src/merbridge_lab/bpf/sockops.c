// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// sockops: brings the two ends of a connection together, and cleans up behind it.
//
// On the wire ACTIVE_ESTABLISHED (SYN-ACK received) comes before PASSIVE_ESTABLISHED (its ACK received), so
// the dialling side leaves a note under the connection's first sequence numbers, and the accepting side takes
// it away.

#include "common.h"

// Whether this is an IPv4 connection; if so, fills `wire`.
INLINE int wire_of(struct bpf_sock_ops *ctx, struct wire *wire) {
    u32 family = ctx->family;
    u32 word;

    if (family == AF_INET6) {
        // An IPv6 socket of a pure IPv6 connection shows 127.0.0.6 in remote_ip4 (LOOPBACK4_IPV6): not ours.
        word = ctx->remote_ip6[0];
        BARRIER;
        word |= ctx->remote_ip6[1];
        BARRIER;
        word |= ctx->remote_ip6[2] ^ MAPPED;
        BARRIER;
        if (word)
            return 0;
    } else if (family != AF_INET) {
        return 0;
    }
    wire->src_ip4 = ctx->local_ip4;
    BARRIER;
    wire->dst_ip4 = ctx->remote_ip4;
    BARRIER;
    wire->src_port = ctx->local_port;
    BARRIER;
    wire->dst_port = bpf_ntohl(ctx->remote_port);
    BARRIER;
    return 1;
}

INLINE void watch_close(struct bpf_sock_ops *ctx) {
    bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

INLINE void enter(struct bpf_sock_ops *ctx, u64 pair, u32 side, u64 netns) {
    struct end end = {.pair = pair, .side = side};
    int failed = merlab_peers.sock_hash_update(ctx, &end, BPF_ANY);

    if (failed)
        count(netns, COUNTER_MAP_FULL, 1);
}

INLINE void listening(struct bpf_sock_ops *ctx, u64 netns) {
    int failed;

    if (ctx->local_port != PORT_INBOUND)
        return;
    failed = merlab_listeners.sock_hash_update(ctx, &netns, BPF_ANY);
    if (!failed)
        count(netns, COUNTER_LISTENERS_SEEN, 1);
}

INLINE void dialled(struct bpf_sock_ops *ctx, struct bpf_sock *sk, u64 netns) {
    struct flow *flow = merlab_flows.sk_storage_get(sk, 0, 0);
    struct handover handover = {};
    struct pair pair = {};
    u64 id;

    if (!flow || flow->leg == LEG_NONE || flow->side != 0)
        return;
    if (!wire_of(ctx, &pair.wire))
        return;
    id = flow->pair;
    // Bytes sent with the SYN went by TCP: what follows must not overtake them.
    flow->tcp = ctx->data_segs_out != 0;
    pair.sk[0] = (u64)sk;
    pair.cookie[0] = bpf_get_socket_cookie(ctx);
    pair.netns[0] = netns;
    pair.tcp[0] = flow->tcp;
    pair.orig_ip4 = flow->orig_ip4;
    pair.orig_port = flow->orig_port;
    pair.leg = flow->leg;
    pair.ends = 1;
    // What is acknowledged, as a SYN may bring data.
    pair.handshake.from_dialling = ctx->snd_una;
    BARRIER;
    pair.handshake.from_accepting = ctx->rcv_nxt;
    BARRIER;
    handover.pair = id;
    handover.orig_ip4 = flow->orig_ip4;
    handover.orig_port = flow->orig_port;
    handover.leg = flow->leg;
    watch_close(ctx);
    if (merlab_pairs.update(&id, &pair))
        count(netns, COUNTER_MAP_FULL, 1);
    if (merlab_handover.update(&pair.handshake, &handover))
        count(netns, COUNTER_MAP_FULL, 1);
    enter(ctx, id, 0, netns);
    SAY("established pair=%llx src=%pI4:%u", id, &pair.wire.src_ip4, pair.wire.src_port);
}

// Accepted from someone who left no note. Brought here by sk_lookup, it will be asked where it was to go.
INLINE void arrived(struct bpf_sock_ops *ctx, struct bpf_sock *sk, u64 netns) {
    struct pod *pod = merlab_pods.lookup(&netns);
    struct wire wire = {};
    struct flow *flow;

    if (!pod || !wire_of(ctx, &wire) || wire.src_ip4 != pod->ip4 ||
        !is_steered(wire.src_ip4, wire.dst_ip4, wire.src_port))
        return;
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (flow)
        flow->steered = 1;
    else
        count(netns, COUNTER_MAP_FULL, 1);
}

INLINE void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk, u64 netns) {
    struct handshake handshake = {};
    struct handover *note;
    struct pair *pair;
    struct flow *flow;
    u64 id;
    u32 leg, ip4, port = ctx->local_port;

    BARRIER;
    ip4 = ctx->local_ip4;
    BARRIER;
    handshake.from_dialling = ctx->rcv_nxt;
    BARRIER;
    handshake.from_accepting = ctx->snd_una;
    BARRIER;
    note = merlab_handover.lookup(&handshake);
    if (!note) {
        arrived(ctx, sk, netns);
        return;
    }
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!flow) {
        merlab_handover.delete(&handshake);
        count(netns, COUNTER_MAP_FULL, 1);
        return;
    }
    id = note->pair;
    leg = note->leg;
    flow->pair = id;
    flow->side = 1;
    flow->leg = leg;
    flow->orig_ip4 = note->orig_ip4;
    flow->orig_port = note->orig_port;
    flow->unread = 0;
    flow->tcp = ctx->data_segs_out != 0;
    merlab_handover.delete(&handshake);
    watch_close(ctx);
    enter(ctx, id, 1, netns);
    pair = merlab_pairs.lookup(&id);
    if (pair) {
        pair->cookie[1] = bpf_get_socket_cookie(ctx);
        pair->netns[1] = netns;
        pair->tcp[1] = flow->tcp;
        __sync_fetch_and_add(&pair->ends, 1);
        // Last: from here on the dialling side redirects.
        BARRIER;
        pair->sk[1] = (u64)sk;
    }
    if (leg >= LEG_OUTBOUND && leg <= LEG_INBOUND)
        count(netns, COUNTER_ACCEPTED_OUTBOUND + leg - LEG_OUTBOUND, 1);
    SAY("accepted pair=%llx at=%pI4:%u", id, &ip4, port);
}

// The socket itself leaves `peers` by the kernel's doing.
INLINE void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk) {
    struct flow *flow = merlab_flows.sk_storage_get(sk, 0, 0);
    struct handover *note;
    struct pair *pair;
    struct handshake handshake;
    u64 id;

    if (!flow || flow->leg == LEG_NONE)
        return;
    id = flow->pair;
    pair = merlab_pairs.lookup(&id);
    if (!pair)
        return;
    if (flow->side == 0) {
        handshake = pair->handshake;
        note = merlab_handover.lookup(&handshake);
        if (note && note->pair == id)
            merlab_handover.delete(&handshake);
    }
    // The other end may have bytes to read yet, so the entry stays for as long as one of them is there.
    pair->sk[flow->side & 1] = 0;
    __sync_fetch_and_add(&pair->ends, -1);
    if (pair->ends == 0)
        merlab_pairs.delete(&id);
    flow->leg = LEG_NONE;
    SAY("closed pair=%llx side=%u", id, flow->side);
}

int merlab_sockops(struct bpf_sock_ops *ctx) {
    u32 op = ctx->op;
    u64 netns;
    struct bpf_sock *sk;

    if (op != BPF_SOCK_OPS_TCP_LISTEN_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
        op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
        return 1;
    netns = bpf_get_netns_cookie(ctx);
    sk = ctx->sk;
    if (!sk)
        return 1;
    if (op == BPF_SOCK_OPS_STATE_CB) {
        if (ctx->args[1] == TCP_CLOSE)
            closed(ctx, sk);
        return 1;
    }
    if (!merlab_pods.lookup(&netns))
        return 1;
    if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
        listening(ctx, netns);
    else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
        dialled(ctx, sk, netns);
    else
        accepted(ctx, sk, netns);
    return 1;
}
