/* Loaded before the C library: flushes of files whose path contains $POWERCUT_LOSE do nothing and say that they did. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_lost(int fd)
{
    const char *part = getenv("POWERCUT_LOSE");
    char name[64], path[PATH_MAX];
    ssize_t length;

    if (part == NULL || *part == '\0')
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, part) != NULL;
}

int fsync(int fd)
{
    static int (*real)(int);

    if (is_lost(fd))
        return 0;
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);

    if (is_lost(fd))
        return 0;
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
