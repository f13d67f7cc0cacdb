/* A camera for tests: preloaded into a process, it answers V4L2's requests on a regular file that holds the frames.
 * It is built against the kernel's own header, so that a wrong layout or request code fails as it would on a device.
 * Frame k lies at k * CAMERA_STRIDE. Like a driver, it holds to the order: format, buffers, queue, stream. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static int formatted, buffers, streaming, queued[VIDEO_MAX_FRAME], next_frame, calls;

static unsigned number(const char *name) {
    const char *text = getenv(name);
    return text ? (unsigned)strtoul(text, NULL, 0) : 0;
}

static int refuse(int code) {
    errno = code;
    return -1;
}

static int set_format(struct v4l2_format *format) {
    struct v4l2_pix_format *pix = &format->fmt.pix;
    const char *code = getenv("CAMERA_CODE");
    if (format->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || !pix->width || !pix->height)
        return refuse(EINVAL);
    pix->width = number("CAMERA_WIDTH");
    pix->height = number("CAMERA_HEIGHT");
    pix->pixelformat = v4l2_fourcc(code[0], code[1], code[2], code[3]);
    pix->bytesperline = number("CAMERA_ROW");
    pix->sizeimage = number("CAMERA_BYTES");
    formatted = 1;
    return 0;
}

static int request_buffers(struct v4l2_requestbuffers *request) {
    if (!formatted || request->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || request->memory != V4L2_MEMORY_MMAP)
        return refuse(EINVAL);
    if (request->count > number("CAMERA_FRAMES"))
        request->count = number("CAMERA_FRAMES");
    buffers = (int)request->count;
    return 0;
}

static int with_buffer(unsigned long code, struct v4l2_buffer *buffer) {
    if (buffer->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || buffer->memory != V4L2_MEMORY_MMAP)
        return refuse(EINVAL);
    if (code != VIDIOC_DQBUF && buffer->index >= (unsigned)buffers)
        return refuse(EINVAL);
    if (code == VIDIOC_QUERYBUF) {
        buffer->m.offset = buffer->index * number("CAMERA_STRIDE");
        buffer->length = number("CAMERA_LENGTH") ? number("CAMERA_LENGTH") : number("CAMERA_STRIDE");
        return 0;
    }
    if (code == VIDIOC_QBUF) {
        if (queued[buffer->index])
            return refuse(EINVAL);
        queued[buffer->index] = 1;
        return 0;
    }
    if (!streaming)
        return refuse(EINVAL);
    if (calls++ % 2 == 0) /* a spurious wake-up before every frame */
        return refuse(EAGAIN);
    if (number("CAMERA_UNPLUGGED_AFTER") && calls / 2 > (int)number("CAMERA_UNPLUGGED_AFTER"))
        return refuse(ENODEV);
    if (!queued[next_frame])
        return refuse(EAGAIN);
    buffer->index = number("CAMERA_INDEX") ? number("CAMERA_INDEX") : (unsigned)next_frame;
    buffer->bytesused = number("CAMERA_BYTES");
    queued[next_frame] = 0;
    next_frame = (next_frame + 1) % buffers;
    return 0;
}

int ioctl(int descriptor, unsigned long code, ...) {
    va_list rest;
    va_start(rest, code);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    code &= 0xffffffffUL;
    if (_IOC_TYPE(code) != 'V') {
        int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
        return real(descriptor, code, argument);
    }
    switch (code) {
    case VIDIOC_S_FMT: return set_format(argument);
    case VIDIOC_REQBUFS: return request_buffers(argument);
    case VIDIOC_QUERYBUF:
    case VIDIOC_QBUF:
    case VIDIOC_DQBUF: return with_buffer(code, argument);
    case VIDIOC_STREAMON:
        if (*(int *)argument != V4L2_BUF_TYPE_VIDEO_CAPTURE || !buffers)
            return refuse(EINVAL);
        streaming = 1;
        return 0;
    case VIDIOC_STREAMOFF:
        streaming = 0;
        return 0;
    default: return refuse(ENOTTY);
    }
}
