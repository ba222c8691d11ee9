#include "parallel.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace headroute {

void parallel_for(std::size_t n_units, std::size_t n_threads, const std::function<void(std::size_t, std::size_t)>& unit,
                  const std::function<void()>& wait_tick) {
    if (n_threads <= 1) {
        for (std::size_t i = 0; i < n_units; ++i) unit(i, 0);
        return;
    }
    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t thread) {
        for (std::size_t i = next++; i < n_units; i = next++) unit(i, thread);
    };

    std::mutex mutex;
    std::condition_variable finished;
    std::size_t running = 0;
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    for (std::size_t t = 1; t < n_threads && t < n_units; ++t) {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            ++running;
        }
        try {
            threads.emplace_back([&, t] {
                work(t);
                const std::lock_guard<std::mutex> lock(mutex);
                --running;
                finished.notify_one();
            });
        } catch (const std::exception&) {  // no more threads, or memory for them, to be had
            const std::lock_guard<std::mutex> lock(mutex);
            --running;
            break;
        }
    }
    work(0);
    {
        std::unique_lock<std::mutex> lock(mutex);
        while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
            lock.unlock();
            wait_tick();
            lock.lock();
        }
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace headroute
