// What the native tests share: a check that says where and what, and a count of failures for main to return.
#pragma once

#include <cstdio>

inline int& failures() {
    static int count = 0;
    return count;
}

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            ++failures();                                                       \
        }                                                                       \
    } while (0)

#define CHECK_THROWS(statement, Type)                                                  \
    do {                                                                               \
        bool thrown = false;                                                           \
        try {                                                                          \
            statement;                                                                 \
        } catch (const Type&) {                                                        \
            thrown = true;                                                             \
        }                                                                              \
        if (!thrown) {                                                                 \
            std::printf("%s:%d: did not throw: %s\n", __FILE__, __LINE__, #statement); \
            ++failures();                                                              \
        }                                                                              \
    } while (0)
