// Rows of a tokenised corpus into a batch, in one pass; corpus_rows.py holds the same in numpy, and the tests compare them.
#include <stdint.h>

// Stretch s is `counts[s]` ids at `ids[s]` for the row `row[s]`, from the column `offset[s]` on; they come row by row, and
// a row's last one may hold one id more than there is room for: the target of the last column.
#define FILL(NAME, ID)                                                                                                   \
    void NAME(const int64_t *ids, const int64_t *counts, const int64_t *row, const int64_t *offset, int64_t stretches,    \
              const int64_t *places, int64_t length, int64_t eos, int64_t pad, int64_t *tokens, int64_t *targets,         \
              int64_t *documents) {                                                                                      \
        for (int64_t s = 0; s < stretches;) {                                                                            \
            int64_t here = row[s], filled = 0, number = 1, begin = places[here] * length;                                \
            for (; s < stretches && row[s] == here; s++) {                                                               \
                const ID *from = (const ID *)ids[s];                                                                     \
                int64_t to = begin + offset[s], count = counts[s], fit = offset[s] + count > length ? count - 1 : count;  \
                for (int64_t k = 0; k < fit; k++) tokens[to + k] = from[k];                                              \
                for (int64_t k = 0; k + 1 < count; k++) targets[to + k] = from[k] == eos ? -100 : from[k + 1];           \
                if (fit == count) targets[to + fit - 1] = -100;                                                          \
                for (int64_t k = 0; k < fit; k++) documents[to + k] = number, number += from[k] == eos;                  \
                filled = offset[s] + fit;                                                                                \
            }                                                                                                            \
            for (int64_t k = begin + filled; k < begin + length; k++) tokens[k] = pad, targets[k] = -100, documents[k] = 0; \
        }                                                                                                                \
    }

FILL(fill_rows_2, uint16_t)
FILL(fill_rows_4, uint32_t)
