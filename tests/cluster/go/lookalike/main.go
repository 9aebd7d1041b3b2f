// A stand-in that behaves at its edges as upstream Merbridge does, and intercepts nothing: every connection goes where
// its program meant it to go. It exercises what merlab does around Merbridge; whether merlab sees that nothing is
// intercepted is what it is for.
//
// MANNER says how it starts: "" well, "late" only after it crashed once and took its time, "broken" never.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	noCgroup = "Makefile:75: *** It looks like your system does not have cgroupv2 enabled, or the automatic " +
		"recognition fails. Please enable cgroupv2, or specify the path of cgroupv2 manually via CGROUP2_PATH parameter."
	uncompiled = "mb_connect.c:17:10: fatal error: 'linux/bpf.h' file not found"
)

func main() {
	log.SetFlags(0)
	if strings.HasSuffix(os.Args[0], "make") { // "make -k clean", as the manifest's preStop says
		detach(mustCgroup())
		return
	}
	if crashes() {
		fmt.Println(noCgroup)
		os.Exit(1)
	}
	switch os.Getenv("MANNER") {
	case "broken":
		fmt.Println(uncompiled)
		log.Fatal("failed to load ebpf programs: unexpected exit code: 2")
	case "late":
		// A pod's containers share /dev/shm, also with the one that ended before.
		if file, err := os.OpenFile("/dev/shm/started", os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			_ = file.Close()
			log.Fatal("failed to get what it needs, this time")
		}
		time.Sleep(10 * time.Second)
	}
	run(slices.Contains(os.Args[1:], "-d"))
}

// The first releases asked for the node's /sys/fs, and did not find the right cgroup2 below it.
func crashes() bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		log.Fatal(err)
	}
	return slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(line string) bool {
		fields := strings.Fields(line)
		return len(fields) > 4 && fields[4] == "/sys/fs"
	})
}

func run(debug bool) {
	pods := newMap(mapHash, "local_pod_ips", 16, 484, 1024)
	programs := load(pods, debug)
	update(pods)
	fmt.Printf("level=info msg=%q\n", "Pod Watcher Ready")
	attach(mustCgroup(), programs)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			detach(mustCgroup())
			fmt.Printf("level=info msg=%q\n", "Pod Watcher Down")
			return
		case <-tick.C:
			update(pods)
		}
	}
}

// Which cgroup2 it attaches to: as upstream, the first that is mounted, unless CGROUP2_PATH says another.
func mustCgroup() int {
	path := os.Getenv("CGROUP2_PATH")
	if path == "" {
		mounts, _ := os.ReadFile("/proc/self/mounts")
		for line := range strings.Lines(string(mounts)) {
			fields := strings.Fields(line)
			if len(fields) > 2 && fields[2] == "cgroup2" && !strings.HasPrefix(fields[1], "/host") {
				path = fields[1]
				break
			}
		}
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(noCgroup)
		log.Fatalf("%s: %v", path, err)
	}
	return fd
}
