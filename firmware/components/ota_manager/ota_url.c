#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "ota_url.h"

// The parts of an address that matter here, as positions in it.
typedef struct {
    size_t authority, path, query;   // query: where the path ends
} url_parts_t;

static bool split(const char *url, url_parts_t *p)
{
    const char *mark = strstr(url, "://");
    if (mark == NULL || mark == url || memchr(url, '/', (size_t)(mark - url)) != NULL) {
        return false;
    }
    p->authority = (size_t)(mark - url) + 3;
    p->path = p->authority + strcspn(url + p->authority, "/?#");
    p->query = p->path + strcspn(url + p->path, "?#");
    return p->path > p->authority;
}

// The length of the scheme that ref begins with, 0 for none (RFC 3986 section 3.1).
static size_t scheme_of(const char *ref)
{
    size_t n = strspn(ref, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");
    return ref[n] == ':' && n > 0 && strchr("0123456789+-.", ref[0]) == NULL ? n : 0;
}

// Takes "." and ".." out of the path that starts at path (RFC 3986 section 5.2.4), in place; what follows the path moves up.
static void remove_dots(char *path)
{
    size_t end = strcspn(path, "?#");
    size_t to = 0;
    for (size_t from = 0; from < end;) {
        size_t len = 1 + strcspn(path + from + 1, "/?#");   // one segment with the slash before it
        bool last = from + len >= end;
        bool dot = len == 2 && path[from + 1] == '.';
        bool dots = len == 3 && path[from + 1] == '.' && path[from + 2] == '.';
        if (dots) {
            while (to > 0 && path[--to] != '/') {
            }
        }
        if (!dot && !dots) {
            memmove(path + to, path + from, len);
            to += len;
        } else if (last) {
            path[to++] = '/';
        }
        from += len;
    }
    memmove(path + to, path + end, strlen(path + end) + 1);
}

bool ota_url_beside(const char *url, const char *name, char *out, size_t size)
{
    url_parts_t p;
    if (!split(url, &p)) {
        return false;
    }
    size_t folder = p.query;
    while (folder > p.path && url[folder - 1] != '/') {
        folder--;
    }
    int n = snprintf(out, size, "%.*s%s%s", (int)folder, url, folder == p.path ? "/" : "", name);
    return n > 0 && (size_t)n < size;
}

static bool complain(char *why, size_t size, const char *ref, const char *what)
{
    snprintf(why, size, "url \"%.80s\" %s", ref, what);
    return false;
}

bool ota_url_resolve(const char *base, const char *ref, bool plain_allowed, char *out, size_t size, char *why, size_t why_size)
{
    // What is asked for becomes a line of a request: nothing but printable ASCII, and no space.
    for (const char *c = ref; *c != '\0'; c++) {
        if ((unsigned char)*c <= ' ' || (unsigned char)*c > '~') {
            snprintf(why, why_size, "url is not readable");
            return false;
        }
    }
    url_parts_t b;
    if (!split(base, &b)) {
        return complain(why, why_size, base, "names no server");
    }
    size_t scheme = scheme_of(ref);
    int n;
    if (scheme > 0) {
        n = snprintf(out, size, "%s", ref);
    } else if (strncmp(ref, "//", 2) == 0) {
        n = snprintf(out, size, "%.*s%s", (int)(b.authority - 2), base, ref);
    } else if (ref[0] == '/') {
        n = snprintf(out, size, "%.*s%s", (int)b.path, base, ref);
    } else if (ref[0] == '?') {
        n = snprintf(out, size, "%.*s%s", (int)b.query, base, ref);
    } else if (ref[0] == '#') {
        n = snprintf(out, size, "%s", base);
    } else {
        size_t folder = b.query;
        while (folder > b.path && base[folder - 1] != '/') {
            folder--;
        }
        n = snprintf(out, size, "%.*s%s%s", (int)folder, base, folder == b.path ? "/" : "", ref);
    }
    if (n < 0 || (size_t)n >= size) {
        return complain(why, why_size, ref, "is too long");
    }
    url_parts_t p;
    if (!split(out, &p) || memchr(out + p.authority, '@', p.path - p.authority) != NULL) {
        return complain(why, why_size, ref, "names no server");
    }
    if (out[p.path] == '/') {
        remove_dots(out + p.path);
    }
    out[strcspn(out, "#")] = '\0';
    bool https = strncasecmp(out, "https://", 8) == 0;
    bool http = strncasecmp(out, "http://", 7) == 0;
    if (!https && !(http && plain_allowed)) {
        return complain(why, why_size, ref, "is not https");
    }
    return true;
}
