package main

import (
	"encoding/binary"
	"log"
	"runtime"
	"syscall"
	"unsafe"
)

// bpf(2), as far as it is needed; include/uapi/linux/bpf.h.
const (
	cmdMapCreate, cmdMapUpdate, cmdProgLoad        = 0, 2, 5
	cmdProgAttach, cmdProgDetach, cmdProgQuery     = 8, 9, 16
	cmdProgGetByID                                 = 13
	mapHash                                        = 1
	typeSockOps, typeCgroupSockAddr, typeSockopt   = 13, 18, 25
	hookSockOps, hookConnect4, hookGetsockopt      = 3, 10, 21
	helperTracePrintk, helperUID, helperSockCookie = 6, 15, 46
	sidecar                                        = 1337
)

type hook struct{ kind, attach uint32 }

var hooks = []hook{{typeCgroupSockAddr, hookConnect4}, {typeSockOps, hookSockOps}, {typeSockopt, hookGetsockopt}}

func bpf(command int, attr []byte) (int, error) {
	number := map[string]uintptr{"amd64": 321, "arm64": 280}[runtime.GOARCH]
	result, _, failed := syscall.Syscall(number, uintptr(command), uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	if failed != 0 {
		return 0, failed
	}
	return int(result), nil
}

func must(command int, attr []byte, what string) int {
	result, err := bpf(command, attr)
	if err != nil {
		log.Fatalf("Error: failed to %s: %v", what, err)
	}
	return result
}

func words(values ...uint32) []byte {
	var attr []byte
	for _, value := range values {
		attr = binary.NativeEndian.AppendUint32(attr, value)
	}
	return attr
}

func address(content []byte) []byte {
	return binary.NativeEndian.AppendUint64(nil, uint64(uintptr(unsafe.Pointer(&content[0]))))
}

func name16(text string) []byte {
	name := make([]byte, 16)
	copy(name[:15], text)
	return name
}

func newMap(kind uint32, name string, key, value, entries uint32) int {
	attr := append(words(kind, key, value, entries, 0, 0, 0), name16(name)...)
	return must(cmdMapCreate, attr, "create map "+name)
}

func put(fd int, key, value []byte) {
	attr := append(append(words(uint32(fd), 0), address(key)...), address(value)...)
	must(cmdMapUpdate, append(attr, make([]byte, 8)...), "update a map")
	runtime.KeepAlive(key)
	runtime.KeepAlive(value)
}

func load(pods int, debug bool) []int {
	var loaded []int
	for at, code := range [][]byte{connect(pods, debug), constant(0), constant(1)} {
		license, verdict := []byte("GPL\x00"), make([]byte, 65536)
		attr := words(hooks[at].kind, uint32(len(code)/8))
		attr = append(append(attr, address(code)...), address(license)...)
		attr = append(append(attr, words(1, uint32(len(verdict)))...), address(verdict)...)
		attr = append(append(attr, words(0, 0)...), name16([]string{"mb_sock_connect4", "mb_sockops", "mb_get_sockopt"}[at])...)
		attr = append(attr, words(0, hooks[at].attach)...)
		fd, err := bpf(cmdProgLoad, attr)
		if err != nil {
			log.Fatalf("Error: failed to load program: %v\n%s", err, verdict)
		}
		runtime.KeepAlive(code)
		runtime.KeepAlive(license)
		loaded = append(loaded, fd)
	}
	return loaded
}

func attach(cgroup int, programs []int) {
	for at, program := range programs {
		must(cmdProgAttach, words(uint32(cgroup), uint32(program), hooks[at].attach, 0, 0), "attach program")
	}
}

func detach(cgroup int) {
	for _, one := range hooks {
		ids := make([]byte, 4*64)
		attr := append(append(words(uint32(cgroup), one.attach, 0, 0), address(ids)...), words(64, 0)...)
		if _, err := bpf(cmdProgQuery, attr); err != nil {
			continue
		}
		count := binary.NativeEndian.Uint32(attr[24:])
		for at := range int(count) {
			id := binary.NativeEndian.Uint32(ids[4*at:])
			if program, err := bpf(cmdProgGetByID, words(id, 0, 0)); err == nil {
				_, _ = bpf(cmdProgDetach, words(uint32(cgroup), uint32(program), one.attach, 0, 0))
				_ = syscall.Close(program)
			}
		}
		runtime.KeepAlive(ids)
	}
}

// -- programs, instruction by instruction

type code []byte

func (c *code) add(op, dst, src uint8, off int16, imm int32) {
	*c = append(*c, op, src<<4|dst)
	*c = binary.NativeEndian.AppendUint16(*c, uint16(off))
	*c = binary.NativeEndian.AppendUint32(*c, uint32(imm))
}

func (c *code) move(dst uint8, imm int32)        { c.add(0xb7, dst, 0, 0, imm) }
func (c *code) copy(dst, src uint8)              { c.add(0xbf, dst, src, 0, 0) }
func (c *code) load32(dst, src uint8, off int16) { c.add(0x61, dst, src, off, 0) }
func (c *code) store32(off int16, src uint8)     { c.add(0x63, 10, src, off, 0) }
func (c *code) store64(off int16, src uint8)     { c.add(0x7b, 10, src, off, 0) }
func (c *code) stack(dst uint8, off int16)       { c.copy(dst, 10); c.add(0x07, dst, 0, 0, int32(off)) }
func (c *code) call(helper int32)                { c.add(0x85, 0, 0, 0, helper) }
func (c *code) wide(dst, src uint8, value uint64) {
	c.add(0x18, dst, src, 0, int32(uint32(value)))
	c.add(0, 0, 0, 0, int32(uint32(value>>32)))
}

func (c *code) exit(value int32) {
	c.move(0, value)
	c.add(0x95, 0, 0, 0, 0)
}

// Write a text to the stack, its end at `top`, and leave its address in r1 and its length in r2.
func (c *code) text(top int16, text string) {
	padded := append([]byte(text), 0)
	for len(padded)%8 != 0 {
		padded = append(padded, 0)
	}
	start := top - int16(len(padded))
	for at := 0; at < len(padded); at += 8 {
		c.wide(1, 0, binary.NativeEndian.Uint64(padded[at:]))
		c.store64(start+int16(at), 1)
	}
	c.stack(1, start)
	c.move(2, int32(len(text)+1))
}

func constant(value int32) []byte {
	var c code
	c.exit(value)
	return c
}

// Say in debug mode what upstream's says of an app that dials port 5000, and let it go where it meant to go.
func connect(pods int, debug bool) []byte {
	var c, say code
	c.copy(6, 1)
	c.wide(1, 1, uint64(pods)) // so that the map is one of this program's
	if debug {
		say.load32(7, 6, 4) // user_ip4
		say.store32(-8, 7)
		say.copy(1, 6)
		say.call(helperSockCookie)
		say.copy(8, 0)
		say.text(-16, "[debug] call from user container: cookie: %d, ip: %pI4, port: %d")
		say.copy(3, 8)
		say.stack(4, -8)
		say.move(5, 5000)
		say.call(helperTracePrintk)
		for range 12 {
			say.text(-16, "[debug] redirect %d bytes with eBPF successfully")
			say.move(3, 91)
			say.call(helperTracePrintk)
		}
	}
	over := int16(len(say) / 8)
	c.load32(7, 6, 24) // user_port, in the network's order
	c.add(0xdc, 7, 0, 0, 16)
	c.add(0x55, 7, 0, over+4, 5000) // another port: to the end
	c.call(helperUID)
	c.add(0x67, 0, 0, 0, 32)
	c.add(0x77, 0, 0, 0, 32)
	c.add(0x15, 0, 0, over, sidecar) // the sidecar's own: to the end
	c = append(c, say...)
	c.exit(1)
	return c
}
