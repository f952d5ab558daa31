// The verdict on symbol arrays, the readers that make symbols of text and tokens, and the watch's pushes.
// judge.py and symbols.py hold the same in Python, with the reasons; the tests compare the two.
// Integers only: both give the same answer to the bit.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WORD, NUMBER, MARK, BLANK };
enum { NONE, TOKEN, PERIOD, COUNTER, NEAR_COPY, TEMPLATE, PARAPHRASE };

#define TAIL 8192
#define SLOTS (2 * TAIL)
#define NUMBER_SYMBOL 1u

typedef struct {
    int32_t kind, start, onset, period, end, edits, slots, reserved;
} found_t;

typedef struct {
    int32_t table[SLOTS];
    int32_t back[TAIL];   // distance to the 4-gram's last occurrence, 0 for a new one
    int32_t again[TAIL];  // how often it occurred before
    int32_t fail[TAIL + 1];
    int32_t count[TAIL + 1];
    int32_t words[TAIL + 1], numbers[TAIL + 1], marks[TAIL + 1];
    uint32_t masked[TAIL];
    uint8_t fresh[TAIL];
} scratch_t;

int64_t scratch_bytes(void) { return sizeof(scratch_t); }

static inline uint32_t mix(uint32_t h) {
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    return h ^ h >> 16;
}

static inline uint32_t gram_hash(const uint32_t *x, int64_t size) {
    uint32_t h = 0;
    for (int64_t k = 0; k < size; k++) h = (h ^ x[k]) * 0x9e3779b1u, h = h << 13 | h >> 19;
    return mix(h);
}

// back and again of the q-grams that end at each place.
static void recurrences(const uint32_t *x, int32_t n, int32_t q, scratch_t *s) {
    uint32_t slots = 64;
    while (slots < 2u * (uint32_t)n) slots *= 2;
    memset(s->table, 0, slots * sizeof(int32_t));
    for (int32_t i = 0; i < n && i < q - 1; i++) s->back[i] = s->again[i] = 0;
    for (int32_t i = q - 1; i < n; i++) {
        const uint32_t *gram = x + i - q + 1;
        uint32_t slot = gram_hash(gram, q) & (slots - 1);
        int32_t last;
        while ((last = s->table[slot]) != 0) {
            const uint32_t *other = x + last - q;
            int same = 1;
            for (int32_t k = 0; k < q; k++) same &= gram[k] == other[k];
            if (same) break;
            slot = (slot + 1) & (slots - 1);
        }
        s->table[slot] = i + 1;
        s->back[i] = last ? i + 1 - last : 0;
        s->again[i] = last ? s->again[last - 1] + 1 : 0;
    }
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Tokens that exact copies of the last `period` symbols must cover.
static int64_t exact_cover(const scratch_t *s, int32_t end, int32_t period) {
    int32_t words = s->words[end] - s->words[end - period], numbers = s->numbers[end] - s->numbers[end - period];
    int32_t marks = s->marks[end] - s->marks[end - period];
    if (words == 0) {
        if (numbers) return larger(numbers == period ? 64 : 512, 8 * (int64_t)period);
        return larger(marks ? 192 : 64, 8 * (int64_t)period);
    }
    if (2 * words < period) {
        int64_t copies = period < 12 ? 12 : period < 64 ? 6 : 4;
        return larger(128, copies * period);
    }
    if (period == 1) return 48;
    int64_t copies = period < 32 ? 5 : period < 64 ? 4 : 3;
    return larger(60, copies * period);
}

static int64_t counter_copies(const scratch_t *s, int32_t end, int32_t period, int32_t slots) {
    int32_t words = s->words[end] - s->words[end - period], numbers = s->numbers[end] - s->numbers[end - period];
    if (words == 0 || 5 * numbers > 2 * period) return 200;
    if (slots > 1) return period < 24 ? 64 : 24;
    int64_t copies = period >= 24 ? 5 : period >= 12 ? 8 : 16;
    return 3 * words < period ? 2 * copies : copies;
}

static int predicted(const int32_t *value, int64_t i, int64_t lag, int64_t older) {
    int64_t step = (int64_t)value[i] - value[i - lag];
    if (step == 0) return 1;
    return i - lag - older >= 0 && step == (int64_t)value[i - lag] - value[i - lag - older];
}

// Distinct values among the numbers of the last copy that differ from the copy before.
static int32_t changing_slots(const uint8_t *cls, const int32_t *value, int32_t end, int32_t period) {
    int32_t seen[8], count = 0;
    for (int32_t i = end - period; i < end; i++) {
        if (cls[i] != NUMBER || i < period || cls[i - period] != NUMBER || value[i] == value[i - period]) continue;
        int32_t known = 0;
        for (int32_t k = 0; k < count; k++) known |= seen[k] == value[i];
        if (!known && count < 8) seen[count++] = value[i];
    }
    return count;
}

// The shortest period that holds long enough at the end of x[0..end), and how much it covers; 0 for none.
static int32_t exact_period(const uint32_t *x, int32_t end, scratch_t *s, int counting, const uint8_t *cls,
                            const int32_t *value, int32_t *covered) {
    int32_t *fail = s->fail, k = 0, period = 0, known = 0;
    int64_t needed = 0;  // of the period `known`
    const uint32_t *y = x + end - 1;
    fail[0] = 0, fail[1] = 0;
    for (int32_t length = 1; length <= end; length++) {
        if (length > 1) {
            while (k && y[-k] != y[-(length - 1)]) k = fail[k];
            if (y[-k] == y[-(length - 1)]) k++;
            fail[length] = k;
        }
        int32_t now = length - fail[length];
        if (period) {
            if (now != period) break;
            *covered = length;
        } else if (length >= 48 && 3 * (int64_t)now <= length) {
            if (now != known) {
                known = now;
                needed = counting ? larger(96, now * counter_copies(s, end, now, changing_slots(cls, value, end, now)))
                                  : exact_cover(s, end, now);
            }
            if (length >= needed) period = now, *covered = length;
        }
    }
    return period;
}

// Tables, records and code: fewer than half of the symbols are words, or every fifth is a mark.
static int structure(int32_t words, int32_t marks, int32_t covered) { return 2 * words < covered || 5 * marks > covered; }

static int near_copy(const uint32_t *x, const uint8_t *cls, const int32_t *value, int32_t end, int32_t period, scratch_t *s,
                     found_t *out) {
    int32_t lag = period, edits = 0, fixed = 0, misses = 0, matches = 0, loose = 0, advanced = 0;
    int32_t best = 0, best_edits = 0, best_misses = 0, best_advanced = 0;
    int32_t band = period * 3 / 20;
    for (int32_t place = end - 1; place >= lag && loose <= 24; place--) {
        int32_t covered = end - place;
        if (x[place] == x[place - lag]) {
            if (cls && cls[place] == NUMBER && value[place] != value[place - lag]) {
                advanced++;
                if (!predicted(value, place, lag, lag)) edits++, fixed++;
            }
            matches++;
            if (matches >= 4) {
                loose = 0;
                int64_t most = 2 * fixed <= edits ? 5 * (int64_t)covered : (int64_t)covered;
                int64_t all = edits > misses ? edits : misses;
                if (cls ? 32 * (int64_t)edits <= most && 5 * (int64_t)misses <= covered : 10 * all <= covered)
                    best = covered, best_edits = edits, best_misses = misses, best_advanced = advanced;
            }
            continue;
        }
        matches = 0;
        misses++;
        int32_t changed = s->back[place] == 0;
        if (changed && place >= 2 * lag && x[place - lag] != x[place - 2 * lag] && s->back[place - lag] == 0) fixed++;
        if (place - 4 >= lag && memcmp(x + place - 4, x + place - 4 - lag, 16) != 0) {
            for (int32_t step = 1; step <= 2 * band; step++) {
                int32_t moved = step & 1 ? lag + (step + 1) / 2 : lag - step / 2;
                if (moved < 1 || moved < period - band || moved > period + band || place - 4 < moved) continue;
                if (memcmp(x + place - 4, x + place - 4 - moved, 16) == 0) {
                    int32_t by = moved > lag ? moved - lag : lag - moved;
                    if (changed && by > changed) changed = by;
                    lag = moved;
                    break;
                }
            }
        }
        edits += changed;
        loose += changed ? changed : 1;
    }
    if (!best) return 0;
    int32_t onset = end - best < period ? period : end - best, start = onset - period, covered = end - start;
    int32_t words = s->words[end] - s->words[start], numbers = s->numbers[end] - s->numbers[start];
    int32_t copies = period < 64 || !cls ? 5 : period < 200 ? 4 : 3;
    int64_t needed = larger(128, (int64_t)copies * period);
    if (structure(words, s->marks[end] - s->marks[start], covered)) needed *= 3;
    int counts = best_advanced > best_edits && 12 * (int64_t)best_misses <= covered;
    if (best_advanced > best_edits && !counts) return 0;
    if (counts) {
        int32_t slots = changing_slots(cls, value, end, period);
        needed = larger(needed, period * counter_copies(s, end, period, slots));
    }
    if (covered < needed || 3 * numbers > covered) return 0;
    int32_t news = 0;
    for (int32_t i = onset; i < end; i++) news += s->back[i] == 0;
    if (5 * (int64_t)news > (cls ? 2 : 1) * (int64_t)(end - onset)) return 0;
    *out = (found_t){counts ? COUNTER : NEAR_COPY, start, onset, period, end, best_edits, best_advanced, 0};
    return 1;
}

static int32_t median_back(scratch_t *s, int32_t onset, int32_t end) {
    int32_t total = 0;
    memset(s->count, 0, sizeof(int32_t) * (size_t)(end + 1));
    for (int32_t i = onset; i < end; i++)
        if (s->back[i]) s->count[s->back[i]]++, total++;
    int32_t upto = 0;
    for (int32_t distance = 1; distance <= end; distance++) {
        upto += s->count[distance];
        if (2 * upto >= total && upto) return distance;
    }
    return 1;
}

// The number after an n-gram is one of those, or the next one, after the n-gram's last 8 occurrences.
static int number_known(const int32_t *value, int32_t i, const scratch_t *s) {
    int32_t lag = s->back[i], older = s->back[i - lag];
    if (older && predicted(value, i, lag, older)) return 1;
    for (int32_t k = 0, j = i; k < 8 && s->back[j]; k++) {
        j -= s->back[j];
        if (value[j] == value[i]) return 1;
    }
    return 0;
}

// No progress: nearly all q-grams of the end were there before. `least` symbols at least, `share` per thousand new.
static int no_progress(const uint8_t *cls, const int32_t *value, int32_t end, scratch_t *s, int32_t least, int32_t share,
                       int32_t kind, found_t *out) {
    int32_t news = 0, twice = 0, held = 0, held_news = 0;
    for (int32_t length = 1; length <= end; length++) {
        int32_t i = end - length, new = s->back[i] == 0;
        if (!new && cls && cls[i] == NUMBER) new = !number_known(value, i, s);
        news += new;
        twice += s->again[i] >= 2;
        if (length == least && (1000 * (int64_t)news >= (int64_t)share * length || 20 * (int64_t)twice < 17 * (int64_t)length))
            return 0;
        if (!new && 1000 * (int64_t)news < (int64_t)share * length) held = length, held_news = news;
        if (length > least && 250 * (int64_t)news > (int64_t)share * length) break;
    }
    if (held < least) return 0;
    int32_t onset = end - held;
    int32_t words = s->words[end] - s->words[onset], numbers = s->numbers[end] - s->numbers[onset];
    if (5 * (int64_t)numbers > held) return 0;
    if (structure(words, s->marks[end] - s->marks[onset], held) && held < 4 * least) return 0;
    int32_t period = median_back(s, onset, end);
    if (held < 3 * (int64_t)period) return 0;
    *out = (found_t){kind, onset > period ? onset - period : 0, onset, period, end, held_news, 0, 0};
    return 1;
}

// The verdict on n <= TAIL symbols; cls and value are NULL where every symbol counts as a word.
// With `ends`, a last symbol that is new and no number says that the output ended, or went on to something else.
static void judge(const uint32_t *raw, const uint8_t *cls, const int32_t *value, int32_t n, int ends, scratch_t *s, found_t *out) {
    *out = (found_t){0};
    if (n < 48) return;
    if (ends && !(cls && cls[n - 1] == NUMBER)) {
        int32_t i = n - 2;
        while (i >= 0 && raw[i] != raw[n - 1]) i--;
        if (i < 0) return;
    }
    const uint32_t *x = raw;
    int32_t any_number = 0;
    if (cls) {
        for (int32_t i = 0; i < n; i++) {
            s->masked[i] = cls[i] == NUMBER ? NUMBER_SYMBOL : raw[i];
            any_number |= cls[i] == NUMBER;
        }
        x = s->masked;
    }
    recurrences(x, n, 4, s);
    int32_t end = n, old = 0;
    while (end > n - 9 && s->back[end - 1] == 0) end--;
    if (end == n - 9 || end < 48) return;
    for (int32_t i = end - 32; i < end; i++) old += s->back[i] > 0;
    if (old < 16) return;
    s->words[0] = s->numbers[0] = s->marks[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        uint8_t class = cls ? cls[i] : WORD;
        s->words[i + 1] = s->words[i] + (class == WORD);
        s->numbers[i + 1] = s->numbers[i] + (class == NUMBER);
        s->marks[i + 1] = s->marks[i] + (class == MARK);
    }
    int32_t covered = 0, period = exact_period(raw, end, s, 0, cls, value, &covered);
    // A long run of digits comes nine by nine, and what is left of it at the end is no copy of the numbers before.
    if (!period && cls && cls[end - 1] == NUMBER && cls[end - 2] == NUMBER && raw[end - 1] != raw[end - 2]) {
        period = exact_period(raw, end - 1, s, 0, cls, value, &covered);
        if (period) end--;
    }
    if (period) {
        *out = (found_t){period == 1 ? TOKEN : PERIOD, end - covered, end - covered + period, period, end, 0, 0, 0};
        return;
    }
    if (any_number && (period = exact_period(x, end, s, 1, cls, value, &covered))) {
        int32_t total = 0, wrong = 0, start = end - covered;
        for (int32_t i = start + 2 * period; i < end; i++)
            if (cls[i] == NUMBER) total++, wrong += !predicted(value, i, period, period);
        if (8 * wrong <= total) {
            *out = (found_t){COUNTER, start, start + period, period, end, wrong, changing_slots(cls, value, end, period), 0};
            return;
        }
    }
    int32_t first = end > 1024 ? end - 1024 : 0;
    memset(s->count, 0, sizeof(int32_t) * (size_t)(n + 1));
    for (int32_t i = first; i < end; i++)
        if (s->back[i]) s->count[s->back[i]]++;
    for (int32_t attempt = 0; attempt < 3; attempt++) {
        int32_t mode = 2;
        for (int32_t distance = 3; distance <= n; distance++)
            if (s->count[distance] > s->count[mode]) mode = distance;
        if (s->count[mode] < 8) break;
        if (near_copy(x, cls, value, end, mode, s, out)) return;
        s->count[mode] = 0;
    }
    if (no_progress(cls, value, end, s, 192, 30, TEMPLATE, out)) return;
    if (cls) {
        recurrences(x, n, 2, s);
        if (no_progress(cls, value, end, s, 320, 20, PARAPHRASE, out)) return;
    }
}

// A loop that fills the tail began before it: judge earlier stretches, each half a tail back, while they loop too.
static void extend(const uint32_t *raw, const uint8_t *cls, const int32_t *value, int64_t begin, scratch_t *s, found_t *out) {
    found_t earlier;
    while (begin > 0 && out->start - begin < out->period + 64) {
        int64_t end = begin + TAIL / 2, from = end > TAIL ? end - TAIL : 0;
        int32_t tries = 0;
        for (; tries < 4; tries++, end -= 37) {
            judge(raw + from, cls ? cls + from : NULL, value ? value + from : NULL, (int32_t)(end - from), 0, s, &earlier);
            if (earlier.kind && from + earlier.onset < out->onset) break;
        }
        if (tries == 4) return;
        out->start = (int32_t)(from + earlier.start), out->onset = (int32_t)(from + earlier.onset);
        begin = from;
    }
}

// Verdicts on many rows; row r is [offsets[r], offsets[r + 1]). Positions are in the row's symbols.
void judge_many(const uint32_t *raw, const uint8_t *cls, const int32_t *value, const int64_t *offsets, int64_t rows,
                int64_t ends, scratch_t *s, found_t *out) {
    for (int64_t row = 0; row < rows; row++) {
        int64_t first = offsets[row], size = offsets[row + 1] - first, skipped = size > TAIL ? size - TAIL : 0;
        int64_t begin = first + skipped;
        judge(raw + begin, cls ? cls + begin : NULL, value ? value + begin : NULL, (int32_t)(size - skipped), ends != 0, s,
              out + row);
        if (!out[row].kind || !skipped) continue;
        out[row].start += (int32_t)skipped, out[row].onset += (int32_t)skipped, out[row].end += (int32_t)skipped;
        extend(raw + first, cls ? cls + first : NULL, value ? value + first : NULL, skipped, s, out + row);
    }
}

// --- reading ---

enum { SKIP, LETTER, DIGIT, PUNCTUATION, SPACE, NEWLINE, SINGLE };

static int between(uint32_t c, uint32_t low, uint32_t high) { return c >= low && c <= high; }

static const uint8_t ASCII_SORTS[128] = {
    ['\t'] = SPACE, ['\n'] = NEWLINE, [' '] = SPACE, ['!' ... '/'] = PUNCTUATION, ['0' ... '9'] = DIGIT,
    [':' ... '@'] = PUNCTUATION, ['A' ... 'Z'] = LETTER, ['[' ... '`'] = PUNCTUATION, ['a' ... 'z'] = LETTER,
    ['{' ... '~'] = PUNCTUATION,
};

static inline int sort_of(uint32_t c) {
    if (c < 0x80) return ASCII_SORTS[c];
    if (c == 0xa0 || c == 0x3000 || between(c, 0x2000, 0x200a)) return SPACE;
    if (between(c, 0x80, 0x9f) || between(c, 0x200b, 0x200f) || c == 0xfeff) return SKIP;
    if (between(c, 0xa1, 0xbf) || c == 0xd7 || c == 0xf7 || between(c, 0x2010, 0x2bff) || between(c, 0x3001, 0x303f) ||
        between(c, 0xff01, 0xff0f) || between(c, 0xff1a, 0xff20) || between(c, 0xfff0, 0xffff))
        return PUNCTUATION;
    if (between(c, 0x0e00, 0x0eff) || between(c, 0x1000, 0x109f) || between(c, 0x1780, 0x17ff) || between(c, 0x3040, 0x31ff) ||
        between(c, 0x3400, 0x9fff) || between(c, 0xac00, 0xd7af) || between(c, 0xf900, 0xfaff) || between(c, 0x1f000, 0x3ffff))
        return SINGLE;
    return LETTER;
}

// Symbols of n code points; starts are code point places. Returns how many; *held is where the last one began.
int64_t read_text(const uint32_t *text, int64_t n, uint32_t *raw, uint8_t *cls, int32_t *value, int64_t *start, int64_t *held) {
    int64_t symbols = 0, i = 0;
    *held = 0;
    while (i < n) {
        int sort = sort_of(text[i]);
        int64_t begin = i++, most = sort == LETTER ? 24 : sort == DIGIT ? 9 : sort == SPACE ? 16 : 1;
        while (i < n && i - begin < most && sort_of(text[i]) == sort) i++;
        *held = begin;
        if (sort == SKIP || (sort == SPACE && i - begin == 1)) continue;
        uint32_t hash = 2166136261u;
        int32_t number = 0;
        for (int64_t k = begin; k < i; k++) {
            hash = (hash ^ text[k]) * 16777619u;
            if (sort == DIGIT) number = number * 10 + (int32_t)(text[k] - '0');
        }
        raw[symbols] = mix(hash), value[symbols] = number, start[symbols] = begin;
        cls[symbols++] = sort == LETTER || sort == SINGLE ? WORD : sort == DIGIT ? NUMBER : sort == PUNCTUATION ? MARK : BLANK;
    }
    return symbols;
}

// Symbols of n token ids: pieces of digits become one number of at most nine. `pieces` holds for every id its class,
// `digits` how many digits it has, `values` their value, `opens` whether a new number begins there (a space before it).
int64_t read_tokens(const int32_t *tokens, int64_t n, int64_t vocabulary, const uint8_t *pieces, const uint8_t *digits,
                    const int32_t *values, const uint8_t *opens, uint32_t *raw, uint8_t *cls, int32_t *value, int64_t *start,
                    int64_t *held) {
    static const int32_t tens[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};
    int64_t symbols = 0;
    int32_t length = 0;
    *held = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = tokens[i];
        int known = (uint32_t)id < (uint64_t)vocabulary;
        if (known && pieces[id] == NUMBER) {
            if (length && !opens[id] && length + digits[id] <= 9) {
                value[symbols - 1] = value[symbols - 1] * tens[digits[id]] + values[id];
                raw[symbols - 1] = mix((raw[symbols - 1] ^ (uint32_t)id) * 16777619u);
                length += digits[id];
                continue;
            }
            length = digits[id];
            value[symbols] = values[id];
        } else {
            length = 0;
            value[symbols] = 0;
        }
        *held = i;
        raw[symbols] = (uint32_t)id, cls[symbols] = known ? pieces[id] : WORD, start[symbols++] = i;
    }
    return symbols;
}

// --- watching ---

#define WORDS_OF_BITS 2048

typedef struct {
    int64_t rows, capacity, check_every, vocabulary;
    int32_t *tokens;                 // [rows, capacity]; the last `held` of a row count
    int64_t *held, *lengths, *next;  // kept of a row, pushed to it, and its length at its next check
    uint32_t *last;                  // [rows, 4] the last four tokens, every piece of digits alike
    uint64_t *bits;                  // [rows, 2, WORDS_OF_BITS] 4-grams of this stretch of TAIL tokens and of the one before
    uint64_t *history;               // bit i: the 4-gram i tokens back had occurred before
    uint8_t *reported;
    const uint8_t *pieces, *digits;
    const int32_t *values;
    const uint8_t *opens;
    uint32_t *raw;  // room for the symbols of one row
    uint8_t *cls;
    int32_t *value;
    int64_t *start;
    scratch_t *scratch;
    found_t *found;   // [rows]
    int64_t *skipped; // [rows]: where the judged end of the row begins
} watch_t;

static void watch_row(watch_t *w, int64_t row, int32_t token) {
    int64_t held = w->held[row];
    int32_t *tokens = w->tokens + row * w->capacity;
    if (held == w->capacity) {
        memmove(tokens, tokens + held - 2 * TAIL, 2 * TAIL * sizeof(int32_t));
        held = 2 * TAIL;
    }
    tokens[held++] = token;
    w->held[row] = held;
    int64_t length = ++w->lengths[row];
    uint32_t *last = w->last + 4 * row;
    int number = w->pieces && (uint32_t)token < (uint64_t)w->vocabulary && w->pieces[token] == NUMBER;
    last[0] = last[1], last[1] = last[2], last[2] = last[3], last[3] = number ? NUMBER_SYMBOL : (uint32_t)token;
    if (length < 4) return;
    uint64_t *bits = w->bits + row * 2 * WORDS_OF_BITS;
    if (length % TAIL == 0) {
        memcpy(bits + WORDS_OF_BITS, bits, WORDS_OF_BITS * sizeof(uint64_t));
        memset(bits, 0, WORDS_OF_BITS * sizeof(uint64_t));
    }
    uint32_t hash = gram_hash(last, 4) & (64 * WORDS_OF_BITS - 1);
    uint64_t bit = 1ull << (hash & 63), *place = bits + hash / 64;
    uint64_t old = (*place & bit) != 0 || (place[WORDS_OF_BITS] & bit) != 0;
    *place |= bit;
    w->history[row] = w->history[row] << 1 | old;
}

static int watch_check(watch_t *w, int64_t row) {
    // What judge() asks for first, seen without it: 16 of the 32 4-grams before at most 8 new ones are old.
    uint64_t history = w->history[row];
    if (w->reported[row] || w->lengths[row] < w->next[row] || !(history & 0x1ff)) return 0;
    if (__builtin_popcountll(history & ((1ull << 40) - 1)) < 16) return 0;
    int64_t held = w->held[row], most = w->pieces ? 2 * TAIL : TAIL, size = held < most ? held : most, unused;
    const int32_t *tokens = w->tokens + row * w->capacity + held - size;
    found_t *found = w->found + row;
    int64_t first = w->lengths[row] - size;
    if (w->pieces) {
        int64_t symbols = read_tokens(tokens, size, w->vocabulary, w->pieces, w->digits, w->values, w->opens, w->raw, w->cls,
                                      w->value, w->start, &unused);
        int64_t begin = symbols > TAIL ? symbols - TAIL : 0;
        judge(w->raw + begin, w->cls + begin, w->value + begin, (int32_t)(symbols - begin), 1, w->scratch, found);
        if (found->kind) found->start += begin, found->onset += begin, found->end += begin;
    } else {
        judge((const uint32_t *)tokens, NULL, NULL, (int32_t)size, 1, w->scratch, found);
    }
    w->skipped[row] = first;
    w->next[row] = w->lengths[row] + (size / 32 > w->check_every ? size / 32 : w->check_every);
    return found->kind != NONE;
}

// One token for every active row; marks in `due` the rows found looping now, and returns how many. The caller sets
// `reported` of a row that need not be looked at again.
int64_t watch_push(watch_t *w, const int64_t *tokens, const uint8_t *active, uint8_t *due) {
    int64_t count = 0;
    for (int64_t row = 0; row < w->rows; row++) {
        due[row] = 0;
        if (!active[row]) continue;
        watch_row(w, row, (int32_t)tokens[row]);
        if (w->lengths[row] % w->check_every == 0 && watch_check(w, row)) due[row] = 1, count++;
    }
    return count;
}
