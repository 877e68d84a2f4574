#include "runtime/memory.h"

#include "python/bind.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

// Owns a block as long as Python holds it: an array's base.
class Block {
 public:
  Block(void* memory, int64_t bytes) : memory_(memory), bytes_(bytes) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { pool_release(memory_); }

  void* memory() const { return memory_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* memory_;
  int64_t bytes_;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Block* block = nb::inst_ptr<Block>(self);
  return PyBuffer_FillInfo(view, self, block->memory(), block->bytes(), 0, flags);
}

PyType_Slot block_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

Block* allocate(int64_t bytes) {
  void* memory = pool_allocate(bytes);
  return memory == nullptr ? nullptr : new Block(memory, bytes);
}

nb::dict stats() {
  const PoolStats s = pool_stats();
  nb::dict all;
  all["in_use"] = s.in_use;
  all["idle"] = s.idle;
  all["peak"] = s.peak;
  all["limit"] = s.limit;
  all["seconds"] = s.seconds;
  all["served"] = s.served;
  all["reused"] = s.reused;
  return all;
}

}  // namespace

void bind_memory(nb::module_& m) {
  nb::class_<Block>(m, "Block", nb::type_slots(block_slots));
  m.attr("POOLED_FROM") = kPooledFrom;
  m.def("allocate", &allocate, nb::arg("bytes"), nb::rv_policy::take_ownership);
  m.def("memory_stats", &stats);
  m.def("set_memory_limit", &pool_set_limit, nb::arg("limit"), nb::arg("seconds"));
  m.def("empty_cache", &pool_empty);
}

}  // namespace batchnorm
