// The allocations of the component's own sources, which are compiled with these names for malloc and its kin.
#include <malloc.h>
#include <stdlib.h>

#include "host_chip.h"

void *host_malloc(size_t n);
void *host_realloc(void *p, size_t n);
void host_free(void *p);

void *host_malloc(size_t n)
{
    void *p = malloc(n);
    if (p != NULL) {
        host_heap_take(malloc_usable_size(p));
    }
    return p;
}

void *host_realloc(void *p, size_t n)
{
    size_t before = p != NULL ? malloc_usable_size(p) : 0;
    void *q = realloc(p, n);
    if (q != NULL) {
        host_heap_give(before);
        host_heap_take(malloc_usable_size(q));
    }
    return q;
}

void host_free(void *p)
{
    if (p != NULL) {
        host_heap_give(malloc_usable_size(p));
    }
    free(p);
}
