// Threads: the one place that knows where they come from.
#pragma once

#include <cstdint>

namespace batchnorm {

// A borrowed callable: no allocation, no std::function.
class TaskRef {
 public:
  template <class F> TaskRef(const F& f) : object_(&f), call_([](const void* o, int64_t i) { (*static_cast<const F*>(o))(i); }) {}
  void operator()(int64_t i) const { call_(object_, i); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t);
};

enum class Order { forwards, backwards };

// Runs task(0) … task(tasks - 1), each once, on at most `threads` threads, the caller's among them. A thread begins with a range of
// tasks of its own, in the order asked for, so that in the next pass it finds in its caches what it touched in this one; then it
// helps with the ranges of others. Results must not depend on who runs what. A call that finds the pool busy runs on its caller's
// thread alone, and where several callers are at work, each takes the place of a helper.
void parallel_for(int64_t tasks, int threads, TaskRef task, Order order = Order::forwards);

// A pool that the process has already: calls work(begin, end, context) on parts of 0 … tasks.
using HostPool = void (*)(int64_t tasks, void (*work)(int64_t begin, int64_t end, void* context), void* context);

// While it lives, this thread's jobs run on that pool, so that two pools do not fight for the processors. Not in a forked child: it
// has none of its parent's threads, which such pools do not know; ours makes new ones.
class OnHostPool {
 public:
  explicit OnHostPool(HostPool pool);
  OnHostPool(const OnHostPool&) = delete;
  OnHostPool& operator=(const OnHostPool&) = delete;
  ~OnHostPool();
};

void set_num_threads(int threads);
int get_num_threads();

}  // namespace batchnorm
