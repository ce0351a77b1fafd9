// malloc and its kin of everything that is linked with --wrap, counted.
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "host_chip.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

void *__wrap_malloc(size_t n)
{
    void *p = __real_malloc(n);
    if (p != NULL) {
        host_heap_take(malloc_usable_size(p));
    }
    return p;
}

void *__wrap_calloc(size_t n, size_t size)
{
    void *p = __real_calloc(n, size);
    if (p != NULL) {
        host_heap_take(malloc_usable_size(p));
    }
    return p;
}

void *__wrap_realloc(void *p, size_t n)
{
    size_t before = p != NULL ? malloc_usable_size(p) : 0;
    void *q = __real_realloc(p, n);
    if (q != NULL) {
        host_heap_give(before);
        host_heap_take(malloc_usable_size(q));
    }
    return q;
}

void __wrap_free(void *p)
{
    if (p != NULL) {
        host_heap_give(malloc_usable_size(p));
    }
    __real_free(p);
}
