// Python's global lock, given up while kernels run.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

namespace batchnorm {

// Lets other Python threads run. A daemon thread that wants the lock back while the interpreter shuts down must not return: Python
// before 3.14 ends it by unwinding its stack, which would leave this destructor, so it waits for the process to end instead.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;
  ~WithoutLock() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // not an exception: the unwinding of pthread_exit
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace batchnorm
