// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// cgroup/getsockopt: SO_ORIGINAL_DST, with which a sidecar learns where a connection it accepted was meant to
// go. Without NAT the kernel answers ENOENT; we know from the dialling side.

#include "common.h"

#define SOL_IP          0
#define SO_ORIGINAL_DST 80
#define PAGE            4096

int merlab_sockopt(struct bpf_sockopt *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct sockaddr4 *answer = ctx->optval;
    struct flow *flow;
    struct pod *pod;
    u64 netns, pair = 0;
    u32 ip4, port, counter;

    if (ctx->level != SOL_IP || ctx->optname != SO_ORIGINAL_DST) {
        // The kernel shows programs one page; anything longer would come back cut unless we decline.
        if (ctx->optlen > PAGE)
            ctx->optlen = 0;
        return 1;
    }
    if (!sk || sk->protocol != IPPROTO_TCP)
        return 1;
    ip4 = sk->src_ip4;
    BARRIER;
    port = sk->src_port;
    BARRIER;
    netns = bpf_get_netns_cookie(ctx);
    pod = merlab_pods.lookup(&netns);
    if (!pod)
        return 1;
    flow = merlab_flows.sk_storage_get(sk, 0, 0);
    if (!flow)
        return 1;
    if (flow->leg != LEG_NONE && flow->side == 1) {
        // Wins over NAT's answer, which would name the port we dialled.
        pair = flow->pair;
        ip4 = flow->orig_ip4;
        port = flow->orig_port;
        counter = COUNTER_ORIGINAL_DST_ANSWERED;
    } else if (flow->steered && ctx->retval != 0 && is_sidecar(pod)) {
        // The socket has the address that was dialled. NAT's answer, if there is one, stays.
        counter = COUNTER_ORIGINAL_DST_LOCAL;
    } else {
        return 1;
    }
    if ((void *)(answer + 1) > ctx->optval_end)
        return 1;
    answer->family = AF_INET;
    answer->port = bpf_htons(port);
    answer->ip4 = ip4;
    answer->zero = 0;
    ctx->optlen = sizeof(*answer);
    BARRIER;
    ctx->retval = 0;
    count(netns, counter, 1);
    TELL(EVENT_ORIGINAL_DST, .pair = pair, .ip4 = ip4, .port = port);
    return 1;
}
