// Fixed units of work from one counter, taken by the calling thread and by threads that live as long as the call.
//
// No OpenMP and no pool: nothing survives the call, so there is nothing to break at fork, at exit, in a second
// Python thread or beside another library's threads. Starting and joining a thread costs about 50 µs: callers ask
// for one thread when the work is shorter than that.
#pragma once

#include <cstddef>
#include <functional>

namespace headroute {

// Runs unit(index, thread) for index 0 … n_units - 1 in ascending order of start, thread < n_threads.
// `unit` must not throw. After the calling thread has run out of units it calls wait_tick every 50 ms until the
// others are done. If the system refuses a thread, the work is done with those there are.
void parallel_for(std::size_t n_units, std::size_t n_threads,
                  const std::function<void(std::size_t index, std::size_t thread)>& unit,
                  const std::function<void()>& wait_tick);

}  // namespace headroute
