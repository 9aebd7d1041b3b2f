// Programs in Go, one for each first argument:
//
//	web PORT FILE mptcp|tcp     net/http, whose listener is MPTCP by default or told not to be
//	h2c PORT FILE               net/http with HTTP/2 without TLS
//	streams PORT FILE           streams of bytes as c/stream.h explains them
//	proxy PORT BACKEND FILE     a TCP proxy with io.Copy in front of streams on port BACKEND
//	web|streams fetch HOST PORT FILE down|up N
//	proxy fetch HOST PORT FILE down|up N    streams, through a proxy with io.Copy in this process
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func answer(crc uint32) []byte { return []byte(fmt.Sprintf("C%015d", crc)) }

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func read(path string) []byte {
	file, err := os.ReadFile(path)
	must(err)
	return file
}

func listen(port string) net.Listener {
	listener, err := net.Listen("tcp4", ":"+port)
	must(err)
	return listener
}

func web(file []byte) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		if in.Method == http.MethodGet {
			size, _ := strconv.Atoi(in.URL.Path[strings.LastIndex(in.URL.Path, "/")+1:])
			out.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = out.Write(file[:size])
			return
		}
		crc := crc32.NewIEEE()
		if _, err := io.Copy(crc, in.Body); err == nil {
			_, _ = out.Write(answer(crc.Sum32()))
		}
	})
}

func serveWeb(port string, file []byte, mptcp bool) {
	config := net.ListenConfig{}
	if !mptcp {
		config.SetMultipathTCP(false)
	}
	listener, err := config.Listen(context.Background(), "tcp4", ":"+port)
	must(err)
	must(http.Serve(listener, web(file)))
}

func serveH2C(port string, file []byte) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: ":" + port, Handler: web(file), Protocols: protocols}
	must(server.ListenAndServe())
}

type slow struct{ io.Reader }

func (from slow) Read(into []byte) (int, error) {
	time.Sleep(15 * time.Millisecond)
	return from.Reader.Read(into)
}

// stream serves one connection; it ends with what ends the connection.
func stream(connection net.Conn, file []byte) error {
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(connection, head); err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(head[1:]), 10, 64)
		if err != nil {
			return err
		}
		crc := crc32.NewIEEE()
		var body io.Reader = io.LimitReader(connection, size)
		switch head[0] {
		case 'G', 'X':
			if _, err := connection.Write(file[:size]); err != nil || head[0] == 'X' {
				return err
			}
			continue
		case 'E':
			if _, err := io.CopyN(connection, connection, size); err != nil {
				return err
			}
			continue
		case 'H':
			body = connection
		case 'S':
			body = slow{body}
		}
		if got, err := io.Copy(crc, body); err != nil || head[0] != 'H' && got < size {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if _, err := connection.Write(answer(crc.Sum32())); err != nil || head[0] == 'H' {
			return err
		}
	}
}

func serve(listener net.Listener, handle func(net.Conn)) {
	for {
		connection, err := listener.Accept()
		must(err)
		go handle(connection)
	}
}

func serveStreams(listener net.Listener, file []byte) {
	serve(listener, func(connection net.Conn) {
		defer connection.Close()
		if err := stream(connection, file); err != nil && err != io.EOF {
			log.Print(err)
		}
	})
}

// proxy copies both ways; io.Copy between two TCP connections is splice(2) in Go.
func proxy(listener net.Listener, to string) {
	serve(listener, func(down net.Conn) {
		defer down.Close()
		up, err := net.Dial("tcp4", to)
		if err != nil {
			log.Print(err)
			return
		}
		defer up.Close()
		done := make(chan struct{})
		go func() {
			_, _ = io.Copy(down, up)
			_ = down.(*net.TCPConn).CloseWrite()
			close(done)
		}()
		_, _ = io.Copy(up, down)
		_ = up.(*net.TCPConn).CloseWrite()
		<-done
	})
}

func fetchStream(to string, file []byte, down bool, size int) error {
	connection, err := net.Dial("tcp4", to)
	must(err)
	defer connection.Close()
	kind, sent, wanted := "P", file[:size], answer(crc32.ChecksumIEEE(file[:size]))
	if down {
		kind, sent, wanted = "G", nil, file[:size]
	}
	if _, err := connection.Write(append([]byte(fmt.Sprintf("%s%015d", kind, size)), sent...)); err != nil {
		return err
	}
	got := make([]byte, len(wanted))
	if _, err := io.ReadFull(connection, got); err != nil {
		return err
	}
	return compare(got, wanted)
}

func fetchWeb(to string, file []byte, down bool, size int) error {
	method, sent, wanted := http.MethodPut, file[:size], answer(crc32.ChecksumIEEE(file[:size]))
	if down {
		method, sent, wanted = http.MethodGet, nil, file[:size]
	}
	request, err := http.NewRequest(method, fmt.Sprintf("http://%s/bytes/%d", to, size), bytes.NewReader(sent))
	must(err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	return compare(got, wanted)
}

func compare(got, wanted []byte) error {
	if !bytes.Equal(got, wanted) {
		return errors.New("other bytes than were sent")
	}
	return nil
}

func fetch(kind string, args []string) error {
	to, file, down := net.JoinHostPort(args[0], args[1]), read(args[2]), args[3] == "down"
	size, err := strconv.Atoi(args[4])
	must(err)
	switch kind {
	case "web":
		return fetchWeb(to, file, down, size)
	case "proxy":
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		must(err)
		go proxy(listener, to)
		to = listener.Addr().String()
	}
	return fetchStream(to, file, down, size)
}

func main() {
	kind, args := os.Args[1], os.Args[2:]
	if args[0] == "fetch" {
		must(fetch(kind, args[1:]))
		return
	}
	switch kind {
	case "web":
		serveWeb(args[0], read(args[1]), args[2] == "mptcp")
	case "h2c":
		serveH2C(args[0], read(args[1]))
	case "streams":
		serveStreams(listen(args[0]), read(args[1]))
	case "proxy":
		backend, err := net.Listen("tcp4", "127.0.0.1:"+args[1])
		must(err)
		go serveStreams(backend, read(args[2]))
		proxy(listen(args[0]), "127.0.0.1:"+args[1])
	}
}
