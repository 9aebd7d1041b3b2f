"""curl as a client of a web server of ours: curl.py OPTION fetch HOST PORT FILE down|up N."""

import subprocess
import sys
import zlib
from pathlib import Path

option, _, host, port, path, way, size = sys.argv[1:]
file = Path(path).read_bytes()[: int(size)]
argv = ["curl", "-sS", "-f", option, f"http://{host}:{port}/bytes/{size}"]
if way == "up":
    argv += ["-X", "PUT", "-H", "Expect:", "--data-binary", "@-"]
done = subprocess.run(argv, input=file if way == "up" else b"", capture_output=True, check=False)
if done.returncode:
    sys.exit(done.stderr.decode())
if done.stdout != (file if way == "down" else b"C%015d" % zlib.crc32(file)):
    sys.exit("other bytes than were sent")
