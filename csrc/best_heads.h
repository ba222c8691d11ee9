// The heads of most weight of a row, found in one pass over its dots. Not responsible for weights
// (projection_kernel.inl).
#pragma once

#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

// The best heads of a row so far, where the result will be: a heap with the worst of them at its root. Worse is a
// smaller dot, and of equal ones the later head.
class BestHeads {
   public:
    HR_MEMBER BestHeads(const Rows& rows, std::size_t row, std::size_t n_seen)
        : dots_(reinterpret_cast<float*>(rows.out.data) + row * rows.top.k),
          heads_(rows.top.heads + row * rows.top.k),
          k_(rows.top.k),
          n_(min(n_seen, k_)) {}

    // Heads come in ascending order.
    HR_MEMBER void add(float dot, std::size_t head) {
        if (n_ < k_) {
            std::size_t at = n_++;
            for (; at > 0 && worse(dot, static_cast<std::int64_t>(head), (at - 1) / 2); at = (at - 1) / 2)
                move((at - 1) / 2, at);
            place(dot, static_cast<std::int64_t>(head), at);
        } else if (dot > dots_[0]) {
            sift_down(dot, static_cast<std::int64_t>(head), k_);
        }
    }
    // A vector of dots cannot change anything unless one of them is at least this.
    HR_MEMBER float least() const { return n_ < k_ ? -__builtin_inff() : dots_[0]; }

    // Best first.
    HR_MEMBER void sort() {
        for (std::size_t n = k_; n > 1; --n) {
            const float dot = dots_[n - 1];
            const std::int64_t head = heads_[n - 1];
            move(0, n - 1);
            sift_down(dot, head, n - 1);
        }
    }

    HR_MEMBER float* dots() const { return dots_; }

   private:
    HR_MEMBER bool worse(float dot, std::int64_t head, std::size_t than) const {
        return dot < dots_[than] || (dot == dots_[than] && head > heads_[than]);
    }
    HR_MEMBER void place(float dot, std::int64_t head, std::size_t at) {
        dots_[at] = dot;
        heads_[at] = head;
    }
    HR_MEMBER void move(std::size_t from, std::size_t to) { place(dots_[from], heads_[from], to); }

    // Puts a head into a heap of n whose root is free.
    HR_MEMBER void sift_down(float dot, std::int64_t head, std::size_t n) {
        std::size_t at = 0;
        for (std::size_t child = 1; child < n; child = 2 * at + 1) {
            if (child + 1 < n && worse(dots_[child + 1], heads_[child + 1], child)) ++child;
            if (worse(dot, head, child)) break;
            move(child, at);
            at = child;
        }
        place(dot, head, at);
    }

    float* const dots_;
    std::int64_t* const heads_;
    const std::size_t k_;
    std::size_t n_;
};

}  // namespace
