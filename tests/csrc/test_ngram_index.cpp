// The index finds where the latest tokens stood before, like a search from the end does, in bounded memory.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "program/ngram_index.h"

using namespace fastserve;
using Tokens = std::vector<int32_t>;

namespace {

NgramIndex index_of(const Tokens& tokens) {
    NgramIndex index;
    for (const int32_t token : tokens) index.add(token);
    return index;
}

Tokens draft_of(const NgramIndex& index, int32_t count) {
    Tokens drafts(count);
    const NgramIndex::Match match = index.find();
    CHECK(match.length > 0);
    index.draft(match, count, drafts.data());
    return drafts;
}

void what_followed_the_latest_tokens_is_the_draft() {
    const NgramIndex index = index_of({1, 2, 3, 4, 5, 9, 2, 3});
    CHECK(index.find().length == 2 && index.find().next == 3);
    CHECK((draft_of(index, 3) == Tokens{4, 5, 9}));
}

void a_longer_match_wins_over_a_more_recent_one() {
    CHECK((draft_of(index_of({7, 1, 2, 3, 40, 2, 3, 50, 7, 1, 2, 3}), 1) == Tokens{40}));
}

void of_equally_long_matches_the_most_recent_wins() {
    CHECK((draft_of(index_of({1, 2, 40, 1, 2, 50, 1, 2}), 1) == Tokens{50}));
}

void a_text_that_repeats_itself_is_followed_by_its_own_draft() {
    CHECK((draft_of(index_of({5, 6, 5, 6, 5}), 6) == Tokens{6, 5, 6, 5, 6, 5}));
}

void what_never_stood_before_has_no_match() {
    CHECK(index_of({}).find().length == 0);
    CHECK(index_of({1}).find().length == 0);
    CHECK(index_of({1, 1}).find().length == 0);  // a pair that nothing follows
    CHECK(index_of({1, 2, 3, 4, 2}).find().length == 0);
}

void a_cleared_index_knows_nothing() {
    NgramIndex index = index_of({1, 2, 3, 1, 2});
    index.clear();
    for (const int32_t token : {1, 2}) index.add(token);
    CHECK(index.find().length == 0);
}

// The slow twin: the longest match up to kMaxGram, of these the last, then as far back as it goes.
NgramIndex::Match search(const Tokens& tokens) {
    const int32_t size = static_cast<int32_t>(tokens.size());
    const auto match_before = [&](int32_t next) {
        int32_t length = 0;
        while (length < NgramIndex::kMaxMatch && length < next &&
               tokens[next - length - 1] == tokens[size - length - 1])
            ++length;
        return length;
    };
    NgramIndex::Match best;
    for (int32_t next = size - 1; next > 0; --next) {
        const int32_t length = match_before(next);
        const int32_t gram = std::min(length, NgramIndex::kMaxGram);
        if (length >= NgramIndex::kMinGram && gram > std::min(best.length, NgramIndex::kMaxGram))
            best = {length, next};
    }
    return best;
}

void random_texts_are_found_like_by_a_search() {
    std::mt19937 random(3);
    int num_found = 0, num_forgotten = 0;
    for (int text = 0; text < 50; ++text) {
        const uint32_t alphabet = 2 + random() % 12;
        Tokens tokens;
        NgramIndex index;
        for (int i = 0; i < 300; ++i) {
            tokens.push_back(static_cast<int32_t>(random() % alphabet));
            index.add(tokens.back());
            const NgramIndex::Match expected = search(tokens), found = index.find();
            num_found += found.length > 0;
            // Two grams of one hash: the older is forgotten, and what is found instead is a match still.
            const bool same = found.length == expected.length && found.next == expected.next;
            num_forgotten += !same;
            for (int32_t back = 1; back <= found.length; ++back)
                CHECK(tokens[found.next - back] == tokens[tokens.size() - back]);
        }
    }
    CHECK(num_found > 5000 && num_forgotten < num_found / 5);
}

}  // namespace

int main() {
    what_followed_the_latest_tokens_is_the_draft();
    a_longer_match_wins_over_a_more_recent_one();
    of_equally_long_matches_the_most_recent_wins();
    a_text_that_repeats_itself_is_followed_by_its_own_draft();
    what_never_stood_before_has_no_match();
    a_cleared_index_knows_nothing();
    random_texts_are_found_like_by_a_search();
    return failures() != 0;
}
