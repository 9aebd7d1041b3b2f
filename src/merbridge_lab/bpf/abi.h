// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// What the kernel side and the Python side must agree on: constants, counters and map layouts.
// dataplane/abi.py reads this file, so it keeps to a simple form: one #define of a number, one enumerator,
// one struct member a line; members are u32, u64, char or arrays of them. Nothing here is said a second time
// in Python, except Istio's user and ports, which istio_facts.py has; a test compares the two.
//
// IPv4 addresses are in network byte order, ports in host byte order, in every map.

#define PORT_ADMIN    15000
#define PORT_OUTBOUND 15001
#define PORT_INBOUND  15006
#define PORT_HBONE    15008
#define PORT_AGENT    15020
#define PORT_HEALTH   15021
#define PORT_DNS      15053
#define PORT_STATS    15090

// A receiver that would hold more unread bytes than this with a message gets the message by TCP, whose window
// makes the sender wait.
#define HIGH_WATER 2097152

// No map is allocated beforehand: these bound what a node may use, and nothing is charged for what is not
// used.
#define MAX_PODS      1024
#define MAX_PAIRS     262144
#define MAX_SOCKETS   524288
#define MAX_LISTENERS 8192
#define MAX_PORTS     65536
#define MAX_RANGES    65536

// Room in `pairs` that no connect() may count on: as many may be between the look and the entry in `live`.
#define SPARE 1024

// A connection whose messages have all been redirected for so long, in nanoseconds, sends one by TCP. Packets
// are all that conntrack sees: where its entry expires under a connection that Istio's rules redirected,
// TCP's next packet is taken for a new connection, and the connection is reset.
#define REFRESH 60000000000

// How many listeners of one sidecar are known. Each of Envoy's workers has its own, and one is enough: the
// kernel distributes connections over all that share a port. But if it closes, another must be known.
#define LISTENERS 8

// How many of those who wait for a socket are looked at.
#define WAITERS 4

// How many memory cgroups above a receiver are looked at: a container of Kubernetes has four. And how many
// pages must be free there: the kernel takes so many at once.
#define MEMORY_LEVELS 6
#define MEMORY_SPARE  64

// Which part of a request's way through the mesh a connection is.
enum leg {
    LEG_NONE,     // not ours
    LEG_OUTBOUND, // application -> its own sidecar
    LEG_MESH,     // sidecar -> the sidecar of a pod of this node
    LEG_INBOUND,  // sidecar, from 127.0.0.6 -> its own application
};

// One counter for every decision, kept per pod. Where there is one for each leg, they are in the order of
// enum leg.
enum counter {
    COUNTER_OUTBOUND_CONNECTS, // connect() of the application rewritten to its sidecar
    COUNTER_MESH_CONNECTS,     // connect() of the sidecar to the sidecar of a pod of this node
    COUNTER_INBOUND_CONNECTS,  // connect() of the sidecar, from 127.0.0.6, to its application
    COUNTER_UNTOUCHED_CONNECTS,
    COUNTER_ACCEPTED_OUTBOUND, // accepted by the sidecar from its application
    COUNTER_ACCEPTED_MESH,     // accepted by the sidecar from another sidecar
    COUNTER_ACCEPTED_INBOUND,  // accepted by the application from its sidecar
    COUNTER_OUTBOUND_REDIRECTED_MESSAGES,
    COUNTER_MESH_REDIRECTED_MESSAGES,
    COUNTER_INBOUND_REDIRECTED_MESSAGES,
    COUNTER_OUTBOUND_REDIRECTED_BYTES,
    COUNTER_MESH_REDIRECTED_BYTES,
    COUNTER_INBOUND_REDIRECTED_BYTES,
    COUNTER_PASSED_NOT_PAIRED,      // the other end was not known yet when the first byte was sent
    COUNTER_PASSED_REDIRECT_OFF,    // redirecting is switched off
    COUNTER_PASSED_RECEIVER_FULL,   // the receiver does not keep up: TCP's flow control takes over
    COUNTER_PASSED_REDIRECT_FAILED, // the other end has left
    COUNTER_PASSED_ON_TCP,          // bytes sent by TCP before are not read yet, and must not be overtaken
    COUNTER_ORIGINAL_DST_ANSWERED,  // SO_ORIGINAL_DST answered from what connect() was asked for
    COUNTER_ORIGINAL_DST_LOCAL,     // SO_ORIGINAL_DST answered with the local address: arrived by sk_lookup
    COUNTER_SK_LOOKUP_ASSIGNED,     // connection from elsewhere steered to the inbound listener
    COUNTER_LISTENERS_SEEN,         // a sidecar started to listen on its inbound port
    COUNTER_MAP_FULL,               // an entry could not be made: the connection is served without redirect
    COUNTER_PASSED_READER_ASLEEP,   // a reader waits where it would not see redirected bytes
    COUNTER_PASSED_KTLS,            // the kernel encrypts, or decrypts, this connection
    COUNTER_PASSED_MEMORY,          // the receiver's cgroup is at its memory limit: TCP makes the sender wait
    COUNTER_LEFT_TO_RULES,          // a connect() that was not intercepted: no room, or switched off
    COUNTER_REFUSED_HANDOVERS, // accepted with the numbers of a connection that was not meant for this pod
    COUNTER_PASSED_ENDED,      // the sender has said that it sends no more: TCP refuses it
    COUNTER_PASSED_REFRESH,    // by TCP from time to time, for those who track connections by their packets
    COUNTER_OUTBOUND_TCP_MESSAGES, // sent by TCP, whatever the reason, by a socket in `peers`
    COUNTER_MESH_TCP_MESSAGES,
    COUNTER_INBOUND_TCP_MESSAGES,
    COUNTER_OUTBOUND_TCP_BYTES,
    COUNTER_MESH_TCP_BYTES,
    COUNTER_INBOUND_TCP_BYTES,
    COUNTER_TCP_BYTES_NOT_PAIRED, // those of COUNTER_PASSED_..., in the same order
    COUNTER_TCP_BYTES_REDIRECT_OFF,
    COUNTER_TCP_BYTES_RECEIVER_FULL,
    COUNTER_TCP_BYTES_REDIRECT_FAILED,
    COUNTER_TCP_BYTES_ON_TCP,
    COUNTER_TCP_BYTES_READER_ASLEEP,
    COUNTER_TCP_BYTES_KTLS,
    COUNTER_TCP_BYTES_MEMORY,
    COUNTER_TCP_BYTES_REFRESH,
    COUNTERS,
};

// How many may read the trace at once.
#define READERS 8

// What the trace tells.
enum event_kind {
    EVENT_CONNECT,      // connect() intercepted: pair, leg
    EVENT_WANTED,       // where it was to go: pair, ip4, port
    EVENT_ESTABLISHED,  // dialled from: pair, ip4, port
    EVENT_ACCEPTED,     // accepted at: pair, ip4, port
    EVENT_ORIGINAL_DST, // SO_ORIGINAL_DST answered: pair, ip4, port
    EVENT_REDIRECT,     // bytes moved: pair, side, size
    EVENT_PASSED,       // a message by TCP: pair, side, reason (enum counter)
    EVENT_STEERED,      // by sk_lookup: ip4, port, from_ip4
    EVENT_CLOSED,       // pair, side
};

// One event of the trace, as it is in the rings; what a kind does not have is 0.
struct event {
    u64 nanoseconds; // since the machine was started
    u64 pair;        // the id of the connection
    u32 kind;
    u32 pid; // of the task that ran, in the node's first PID namespace; for arriving packets that is any
    u32 leg;
    u32 side;
    u32 ip4;
    u32 port;
    u32 from_ip4;
    u32 size;
    u32 reason;
    u32 pad;
    char comm[16];
};

// readers[0]: who reads the trace, a bit for each slot of `rings`. Only user space writes it, one process at
// a time. `lost` has for each slot what its ring had no room for.
struct readers {
    u32 open;
    u32 always; // told even if config.debug is 0
};

// config[0]; `redirect` comes first in every version, as detaching another version must be able to switch it
// off. All zero is the node's kill switch, in one write: what is established goes on by TCP, and what is new
// is left to the rules.
struct config {
    u32 redirect;  // 1: messages may move from socket to socket
    u32 debug;     // 1: tell all who read the trace what is done
    u32 intercept; // 1: new connections may be brought to sidecars
};

// kernel[0]: what depends on the running kernel. Values and no constants of the compiler: one compile fits
// all kernels. Offsets are in bytes, from the kernel's BTF (dataplane/btf.py).
struct kernel {
    u64 woken;     // address of woken_wake_function(); 0: not known, so a direction on TCP never comes back
    u32 charges;   // 1: redirected bytes are charged to sk_rmem_alloc (probed)
    u32 quota;     // connections at once of one pod
    u32 sk_cookie; // of struct sock
    u32 sk_uid;
    u32 sk_ipv6only; // and how far to shift that byte
    u32 sk_ipv6only_shift;
    u32 sk_rmem_alloc;
    u32 sk_rcvbuf;
    u32 sk_userlocks; // and how far to shift that byte
    u32 sk_userlocks_shift;
    u32 sk_user_data;
    u32 sk_owned;
    u32 sk_wq;
    u32 sk_ulp_ops;
    u32 tcp_write_seq;
    u32 tcp_copied_seq;
    u32 wq_head;     // of struct socket_wq: the list of those who wait
    u32 waiter_func; // of struct wait_queue_entry
    u32 waiter_entry;
    u32 psock_ingress_msg;
    u32 psock_refcnt;
    u32 task_pid;
    u32 task_comm;
    u32 sk_forward_alloc; // this and what follows: 0 on a kernel without memory cgroups
    u32 sk_memcg;
    u32 memcg_memory;  // of struct mem_cgroup: the counter of its memory
    u32 counter_usage; // of struct page_counter
    u32 counter_max;
    u32 counter_parent;
};

// stamp[0], pinned last: its being there says that the set of pins is complete.
struct stamp {
    char version[64];
    char programs[320]; // "name=tag" of each, as they were loaded
};

// pods[cookie of the network namespace]
struct pod {
    u64 cgroup; // the id of the pod's cgroup
    u32 ip4;
    u32 flags;
    u32 uid; // the user that its sidecar runs as, and the group: as processes of the node see them
    u32 gid;
    char id[64]; // of this very pod, as whoever runs it knows it: Kubernetes' uid
    char namespace[64];
    char name[256];
};

// Flags of a pod: which messages between an app and its own sidecar may be redirected. Between sidecars all
// may.
#define POD_FROM_APP 1 // what the app sends
#define POD_INTO_APP 2 // what the app receives

// And which connections are intercepted, by Istio's annotations (dataplane/istio_annotations.py). Without
// any, no list is looked at.
#define POD_ALL_RANGES     4  // those that the app dials: whatever the address
#define POD_OUTBOUND_LISTS 8  // but see `ports` and `ranges`
#define POD_ALL_INBOUND    16 // those that arrive: whatever the port
#define POD_INBOUND_LISTS  32 // but see `ports`

// The uid and gid of a pod whose sidecar is not known: no process has them. What it dials is left to the
// rules.
#define NOBODY 4294967295

// pod_ips[address]
struct place {
    u64 netns; // the cookie of the pod's network namespace
    u32 flags; // the pod's
    u32 pad;
};

// In which of a pod's lists a port, or a range, is: a sum.
#define EXCLUDED_OUTBOUND 1
#define INCLUDED_OUTBOUND 2
#define EXCLUDED_INBOUND  4
#define INCLUDED_INBOUND  8

// ports[port of a pod]
struct port {
    u64 netns;
    u32 port;
    u32 pad;
};

// ranges[range of a pod]: the longest match wins, so each has the lists of those that it is part of, too.
struct range {
    u32 prefix; // how many of the bits that follow count: 64 and those of the address
    u32 netns_low;
    u32 netns_high;
    u32 ip4;
};

// counters[cookie of the network namespace]
struct counters {
    u64 value[64];
};

// The two addresses of a connection as the dialling side sees them, its own first.
struct wire {
    u32 src_ip4;
    u32 dst_ip4;
    u32 src_port;
    u32 dst_port;
};

// live[cookie of the network namespace]: the connections that were dialled there and are in `pairs`, or will
// be once they are established. live[0]: those of all pods.
// listeners[listener]: the inbound listeners of sidecars.
struct listener {
    u64 netns;
    u32 slot; // below LISTENERS
    u32 pad;
};

// What both ends of a connection, and only they, know when it is made: the first sequence number of either
// direction. Both are chosen at random, and no NAT changes them, as it may change addresses and ports: where
// a connection that Istio's rules redirected has left its trace in conntrack, even ours get another source
// port.
struct handshake {
    u32 from_dialling;
    u32 from_accepting;
};

// peers[end]: the sockets that messages are moved between.
struct end {
    struct handshake handshake;
    u32 side; // 0 dialled, 1 accepted
};

// pairs[handshake]: made by the dialling side, which leaves here where the connection was going; the
// accepting side finds it, and completes it. Arrays are indexed by side.
struct pair {
    u64 id; // for people: the socket cookie of the side that dialled, with the number of its redials on top
    u64 sk[2]; // struct sock *, only ever read through bpf_probe_read_kernel; 0: not there (yet, or any more)
    u64 cookie[2];
    u64 netns[2];
    u64 messages[2]; // redirected, as sent by this side
    u64 bytes[2];
    u64 refreshed; // when a message was last sent by TCP although it could be redirected
    u32 tcp[2];    // 1: the last message that this side sent went by TCP
    struct wire wire;
    u32 orig_ip4;
    u32 orig_port;
    u32 leg;
    u32 ends; // how many of the two sockets are there
};

// flows: in the storage of a socket
struct flow {
    u64 sk;     // struct sock * of the socket itself
    u64 pair;   // its id
    u64 unread; // bytes redirected since the receiver's queue was last seen empty
    struct handshake handshake;
    u32 side;
    u32 leg;
    u32 orig_ip4;
    u32 orig_port;
    u32 redirects; // 1: what this socket sends may be redirected
    u32 written;   // TCP's sequence number when this direction was last seen free of TCP's bytes
    u32 steered;   // 1: accepted by the inbound listener by way of sk_lookup
    u32 dialled;   // how often
    u32 reserved;  // 1: counted in `live`, and not in `pairs` (yet)
    u32 entered;   // 1 + its side, if it is in `peers` under `handshake`
};
