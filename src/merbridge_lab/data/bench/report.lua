-- Run by wrk: prints one JSON object at the end; times in microseconds. With the argument "cycles" it also measures the
-- time from one response to the next: with a new connection for each request, that is all of closing, connecting,
-- asking and being answered. wrk's own latency begins only when the request is written.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } merlab_time;
  int clock_gettime(int clock, merlab_time *now);
]]

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  if arguments[1] ~= "cycles" then
    return
  end
  local now, last, MONOTONIC = ffi.new("merlab_time"), nil, 1
  cycles = {}
  function response()
    ffi.C.clock_gettime(MONOTONIC, now)
    local at = tonumber(now.seconds) * 1e6 + tonumber(now.nanoseconds) / 1e3
    if last then
      cycles[#cycles + 1] = at - last
    end
    last = at
  end
end

function done(summary, latency)
  local times = {}
  local measured = threads[1]:get("cycles")
  if measured then
    table.sort(measured)
  end
  for _, percent in ipairs({ 50, 90, 99, 99.9 }) do
    local value = latency:percentile(percent)
    if measured then
      value = measured[math.max(1, math.ceil(#measured * percent / 100))] or 0
    end
    times[#times + 1] = string.format('"p%g": %.3f', percent, value)
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "bytes": %d, "duration": %d, %s,\n "errors": {"connect": %d, "read": %d, "write": %d, '
      .. '"status": %d, "timeout": %d}}\n',
    summary.requests, summary.bytes, summary.duration, table.concat(times, ", "),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
