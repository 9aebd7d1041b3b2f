// runc for machines that lack CAP_SYS_RESOURCE, and for a Docker that is older than some capabilities.
//
// On such a machine nobody can hand this capability on, lower an OOM score below its own, or raise a limit: runc fails
// where it is asked to. This asks for less, then becomes the real runc. Docker up to 20.10 does not know the youngest
// capabilities, and so leaves them out of --privileged: a container that has all others gets them here, as with a later
// Docker. Where nothing is missing it changes nothing.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	capability = "CAP_SYS_RESOURCE"
	capBit     = 24
)

// What later Dockers have in --privileged, by their numbers.
var younger = map[string]int{"CAP_PERFMON": 38, "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40}

// Whoever has these has all that Docker knows.
var privileged = []any{"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_AUDIT_READ"}

func main() {
	real, err := findReal()
	if err == nil {
		err = adapt(os.Args[1:])
	}
	if err == nil {
		err = syscall.Exec(real, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "runc wrapper:", err)
	os.Exit(1)
}

// The runc to become: the first on the system's usual path that is not this program.
func findReal() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for _, folder := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(folder, "runc")
		if info, err := os.Stat(path); err == nil && !os.SameFile(info, self) {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// Is the capability of this number in the bounding set of this process?
func has(bit int) bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		var bounding uint64
		if _, err := fmt.Sscanf(line, "CapBnd: %x", &bounding); err == nil {
			return bounding&(1<<bit) != 0
		}
	}
	return true
}

// adapt edits what runc is about to read: the bundle's config.json, or the process of an exec.
func adapt(args []string) error {
	switch {
	case slices.Contains(args, "create") || slices.Contains(args, "run"):
		bundle := option(args, "--bundle", "-b")
		if bundle == "" {
			bundle = "."
		}
		return edit(filepath.Join(bundle, "config.json"), func(config map[string]any) {
			adaptProcess(config["process"])
		})
	case slices.Contains(args, "exec"):
		if process := option(args, "--process", "-p"); process != "" {
			return edit(process, func(config map[string]any) { adaptProcess(config) })
		}
	}
	return nil
}

func option(args []string, names ...string) string {
	for i, arg := range args {
		for _, name := range names {
			if arg == name && i+1 < len(args) {
				return args[i+1]
			}
			if value, found := strings.CutPrefix(arg, name+"="); found {
				return value
			}
		}
	}
	return ""
}

func adaptProcess(value any) {
	process, ok := value.(map[string]any)
	if !ok {
		return
	}
	missing := !has(capBit)
	if sets, ok := process["capabilities"].(map[string]any); ok {
		for name, set := range sets {
			if list, ok := set.([]any); ok {
				sets[name] = adaptList(list, missing)
			}
		}
	}
	if !missing {
		return
	}
	if score, ok := process["oomScoreAdj"].(json.Number); ok && strings.HasPrefix(score.String(), "-") {
		process["oomScoreAdj"] = 0
	}
	delete(process, "rlimits")
}

func adaptList(list []any, missing bool) []any {
	all := true
	for _, one := range privileged {
		all = all && slices.Contains(list, one)
	}
	for name, bit := range younger {
		if all && has(bit) && !slices.Contains(list, any(name)) {
			list = append(list, name)
		}
	}
	return slices.DeleteFunc(list, func(one any) bool { return missing && one == capability })
}

func edit(path string, change func(map[string]any)) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Numbers stay as they are written: limits of memory do not fit a float.
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	var config map[string]any
	if err := decoder.Decode(&config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	change(config)
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
